"""The page of blinded triplets: tiles alone, answers kept in the page until they are saved."""

from __future__ import annotations

from collections.abc import Sequence

#: Nothing is fetched; answers stay on the reader's machine until they are saved as a file.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem;color:#222}
fieldset{border:1px solid #ccc;margin:1rem 0;padding:1rem;break-inside:avoid}
.tiles{display:flex;gap:1.5rem;flex-wrap:wrap}.tiles div{max-width:224px}
img{display:block;width:224px;height:224px}label{margin-right:1.5rem}
button{font:inherit;padding:.4rem 1rem}
"""
_SCRIPT = """
document.getElementById("save").addEventListener("click", function () {
  var lines = ["triplet,answer"];
  document.querySelectorAll("fieldset").forEach(function (one) {
    var chosen = one.querySelector("input:checked");
    lines.push(one.dataset.triplet + "," + (chosen ? chosen.value : ""));
  });
  var link = document.createElement("a");
  link.href = "data:text/csv;charset=utf-8," + encodeURIComponent(lines.join("\\n") + "\\n");
  link.download = "answers.csv";
  link.click();
});
"""
_CHOICES = (("1", "candidate 1"), ("2", "candidate 2"), ("0", "neither more than the other"))


def render_triplets(triplets: Sequence[tuple[int, Sequence[str]]]) -> str:
    """One page that names no encoder, label, center, slide or patient.

    Parameters
    ----------
    triplets
        Number of each triplet, and the sources of its three pictures: the tile and two candidates.
    """
    parts = "\n".join(_triplet(number, sources) for number, sources in triplets)
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>Which tile is more alike?</title><style>{_STYLE}</style></head><body><main>\n"
        "<h1>Which tile is more alike?</h1>\n"
        "<p>Of each triplet say which candidate shows tissue more like that of the tile, as you would "
        "judge it for a diagnosis. Colour and sharpness alone do not count.</p>\n"
        f"{parts}\n<p><button id='save' type='button'>Save the answers</button></p>\n"
        f"</main><script>{_SCRIPT}</script></body></html>\n"
    )


def _triplet(number: int, sources: Sequence[str]) -> str:
    names = ("the tile", "candidate 1", "candidate 2")
    pictures = "".join(
        f"<div><img src='{source}' alt='{name} of triplet {number}'>{name}</div>"
        for name, source in zip(names, sources, strict=True)
    )
    choices = "".join(
        f"<label><input type='radio' name='t{number}' value='{value}'> {text}</label>"
        for value, text in _CHOICES
    )
    return (
        f"<fieldset data-triplet='{number}'><legend>Triplet {number}</legend>"
        f"<div class='tiles'>{pictures}</div><p>More alike: {choices}</p></fieldset>"
    )
