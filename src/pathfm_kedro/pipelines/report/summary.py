"""What a reader reads: words for experiments and figures, the Markdown summary, the metrics."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

Row = Mapping[str, Any]


@dataclass(frozen=True)
class ExperimentWords:
    """How an experiment is told to somebody who never met it.

    Attributes
    ----------
    title
        Heading.
    meaning
        One sentence: what is measured and why it matters.
    published
        Figures others published, as context; they come from other slides and other protocols.
    unit
        What a figure is counted over.
    null
        Head of the null's column.
    """

    title: str
    meaning: str
    published: str = ""
    unit: str = "rows"
    null: str = "If it knew nothing"


#: Told in this order; an experiment that is not listed follows in alphabetical order.
EXPERIMENTS: dict[str, ExperimentWords] = {
    "robustness_index": ExperimentWords(
        "Robustness index: tissue or center?",
        "When two tiles look alike to the encoder, is it because they show the same tissue from "
        "different centers, or because they come from the same center? Below the null, the "
        "encoder follows the center more than an encoder that knows nothing. There are two nulls: "
        "the design null is the index of neighbours drawn at random from this cohort, and what the "
        "check subtracts; “labels shuffled” is where 95 of 100 indices of the same encoder lie "
        "once the labels are dealt anew within each center.",
        "Robustness index averaged over the data sets of PathoROB (Kömen et al. 2025): Virchow2 "
        "0.861, CONCH v1.5 0.852, UNI2-h 0.757, UNI 0.598, Phikon-v2 0.469. On Camelyon alone: "
        "Virchow2 0.806, UNI 0.145, Phikon-v2 0.019.",
        unit="tiles",
        null="Labels shuffled",
    ),
    "robustness_margins": ExperimentWords(
        "Margins: how much nearer is the tissue than the center?",
        "The robustness index counts neighbours; the margin weighs distances. For each tile: how much "
        "nearer are tiles of its label at other centers than tiles of other labels at its own center, "
        "from −1 to 1 (CRoMa: the median over tiles; its lower tail: the tenth of tiles that fare "
        "worst). MaRI is the robustness index with near neighbours counting more. With more labels "
        "than centers chance itself lies below zero, so that the checks subtract it.",
        unit="tiles",
        null="Labels shuffled",
    ),
    "robustness_index_comparison": ExperimentWords(
        "Comparison of encoders: which follows the tissue more?",
        "Differences of the robustness index between two encoders on the same resampled patients. An "
        "interval without zero tells them apart on this cohort.",
        unit="tiles",
    ),
    "clustering_score": ExperimentWords(
        "Clusters: do tiles gather by tissue or by center?",
        "Tiles are put into clusters without any label. The score is how well the clusters match the "
        "labels minus how well they match the centers (adjusted Rand index). The check subtracts what "
        "clusters that know neither would reach: below zero, tiles gather by center.",
        unit="tiles",
    ),
    "performance_drop": ExperimentWords(
        "Performance drop: what does a tie between label and center cost?",
        "A probe learns two labels from slides in which the label goes with the center, more and more "
        "(Cramér's V from 0 to 1), and is tested on other patients where it does not. Where it leans "
        "on the center, accuracy falls.",
        unit="tiles",
    ),
    "center_auc": ExperimentWords(
        "Center: can it be told, with and without colour?",
        "How well a linear probe names the center of patients that it did not see (½ is chance), from "
        "the vectors as they are and from what is left of them after colour is regressed out. What is "
        "still told then is sharpness, noise, compression or handling.",
        unit="tiles",
    ),
    "rotation": ExperimentWords(
        "Rotation: does turning the slide change the answer?",
        "Tissue has no up and down. A tile and its rotated copy should have the same neighbours; "
        "the share of neighbours kept (m-kNN) says how far they do. The dashed curves rotate there "
        "and back, so that blur alone is seen apart.",
        "Mean m-kNN over angles: PathDino 0.850, Kaiko-B 0.828, Phikon 0.797, Virchow2 0.735, UNI "
        "0.733, GigaPath 0.712, Phikon-v2 0.690, CONCH 0.657, Virchow 0.535. At 90°, in that "
        "order: 0.929, 0.848, 0.841, 0.838, 0.766, 0.784, 0.704, 0.742, 0.532.",
        unit="tiles",
    ),
    "appearance": ExperimentWords(
        "Stain and scanner: does a change of look change the answer?",
        "The same tile with its stain a little stronger or weaker, in another center's stain, "
        "compressed, blurred, brighter or darker. It should keep the neighbours it had. A relative "
        "shift of 1 is a tile that moved as far as another patient's tissue of the same label. No "
        "threshold for these has been published; those here are this project's.",
        unit="tiles",
    ),
    "cue_conflict": ExperimentWords(
        "Cue conflict: tissue of one center in the stain of another",
        "Such a tile has two homes: its tissue's and its stain's. The figure is the share of its "
        "neighbours that follow the tissue, among those that follow either.",
        unit="tiles",
    ),
    "texture": ExperimentWords(
        "Texture: does the arrangement matter?",
        "A tile is cut into patches that change places: colours and fine texture stay, glands and "
        "layers go. The control turns each patch in place, with the same seams. What survives of the "
        "label was read from texture alone. An encoder of texture is not wrong, but its user should "
        "know.",
        unit="tiles",
    ),
    "stain_probe": ExperimentWords(
        "Stain probe: can the amount of stain be read?",
        "How much of the variance of haematoxylin and eosin a linear model reads from the vectors of "
        "patients that it did not see. Nuclei are haematoxylin, so that a high figure is no fault in "
        "itself: read it beside the changes of stain.",
        unit="tiles",
    ),
    "crop_coherence": ExperimentWords(
        "Crops: do parts of a tile belong together?",
        "Encoders are trained to find a small crop and a large crop of one picture alike, as if both "
        "showed one object. Tissue has no such object. The figure is how much more alike crops of one "
        "tile are than crops of two tiles of the slide, and by what they agree.",
        unit="tiles",
    ),
    "adversarial": ExperimentWords(
        "Adversarial noise: can an invisible change turn the answer?",
        "A probe of the label was trained on clean tiles of other patients; then each pixel of a tile "
        "may change by a few of 255 grey levels, in the direction that misleads most. Random noise of "
        "the same size is the control. A wilful attack on a hospital's slides is unlikely; the figure "
        "shows how far from the tissue the answer hangs.",
        "Reported by arXiv 2510.23807 and not verified here: accuracy falls from 97% to 12%.",
        unit="tiles",
    ),
    "field_of_view": ExperimentWords(
        "Field of view: does a tile show enough?",
        "The same places seen through a tile and through wider fields: as one picture made smaller, as "
        "the mean of the tiles that cover it, or at full resolution where the encoder allows. If a "
        "wider field names the label better by more than five points, single tiles show too little.",
        unit="places",
    ),
    "calibration": ExperimentWords(
        "Calibration: at which dose does a check begin to fail?",
        "Drawn slides alone allow this: the truth is mixed with a dose of what no encoder should "
        "follow, and each check is asked again. It must pass at dose 0 and fail at dose 1; between "
        "them one sees how much it takes.",
        unit="tiles",
    ),
    "retrieval": ExperimentWords(
        "Retrieval: does a search find the same diagnosis?",
        "Each slide is searched among the slides of all other patients; the labels of the best "
        "matches vote. F1 near the null means the search is no better than guessing.",
        "Macro-F1 on 23 organs, majority of 5: UNI 0.42 ± 0.14, GigaPath 0.41 ± 0.13, Virchow 0.40 "
        "± 0.13, DenseNet 0.27 ± 0.13. Reported by arXiv 2510.23807 and not verified here: kidney "
        "0.68 against lung 0.21.",
        unit="slides",
    ),
    "linear_probe": ExperimentWords(
        "Linear probe: what can be read from the vectors?",
        "A simple classifier is trained on some patients and tested on others, once to tell the "
        "tissue and once to tell the center. That a center can be read does not show that it "
        "misleads; it shows that the vectors hold it, and a model trained on them may use it. The "
        "robustness index asks whether it outweighs the tissue among neighbours.",
        unit="tiles",
    ),
    "geometry": ExperimentWords(
        "Geometry: how are the vectors spread?",
        "Descriptive figures of the cloud of vectors. They have no threshold, and skewness and "
        "kurtosis depend on the number of dimensions: compare them within one encoder only.",
        "Sun et al. 2025, ResNet-50 pretrained with no and with 3 of 10 labels wrong, on "
        "Camelyon17: skewness 6.00 and 3.61, kurtosis 110 and 57.",
        unit="tiles",
    ),
}

METRICS: dict[str, str] = {
    "ri": "Robustness index",
    "ri_ratio": "Robustness index, ratio form",
    "ri_minus_null": "Robustness index minus its null",
    "support": "Neighbours that count towards the index",
    "knn_accuracy_label": "Nearest neighbours agree on the label",
    "knn_accuracy_center": "Nearest neighbours agree on the center",
    "mknn": "Neighbours kept (m-kNN)",
    "mknn_mean": "Neighbours kept, mean over angles",
    "mknn_variance": "Neighbours kept, variance over angles",
    "mknn_quarter_turns": "Neighbours kept, mean over quarter turns",
    "mknn_excess_drop": "Neighbours lost beyond the control",
    "cosine_distance": "Cosine distance to the unrotated view",
    "croma_minus_null": "Median margin (CRoMa) minus chance",
    "croma": "Median margin (CRoMa)",
    "croma_lower_tail": "Margin of the worst tenth of tiles",
    "croma_mean": "Mean margin",
    "worst_patients": "Margin of the worst tenth of patients",
    "worst_decile_share": "Share of the worst tiles that come from",
    "confounder_dominant": "Tiles nearer to their center than to their tissue",
    "mari": "Robustness index weighed by distance (MaRI)",
    "mari_minus_null": "MaRI minus chance",
    "ri_difference": "Difference of the robustness index",
    "clustering_score_minus_null": "Clusters match labels minus centers, beyond chance",
    "clustering_score": "Clusters match labels minus clusters match centers",
    "ari_label": "Clusters match labels (ARI)",
    "ari_center": "Clusters match centers (ARI)",
    "n_clusters": "Clusters",
    "silhouette": "Silhouette of the clusters",
    "apd": "Average performance drop",
    "nipd": "Normalised performance drop",
    "center_auc": "Center told (AUC)",
    "center_auc_drop": "Center told by colour (difference of AUC)",
    "stain_kept_neighbours": "Neighbours kept when the stain changes",
    "scanner_kept_neighbours": "Neighbours kept when the scanner changes",
    "kept_neighbours": "Neighbours kept",
    "relative_shift": "Shift, of the distance to another patient",
    "follows_morphology_minus_null": "Neighbours follow the tissue, minus chance",
    "follows_morphology": "Neighbours follow the tissue",
    "morphology_loss": "How much the stain pulled",
    "label_survival": "Share of the label that survives the shuffle",
    "label_accuracy": "Accuracy of the label probe",
    "excess_shift": "Shift beyond that of the seams",
    "excess_drop": "Neighbours lost beyond those of the seams",
    "selectivity": "Variance read beyond chance",
    "r2": "Variance read",
    "coherence": "Cosine of own crops minus others'",
    "own_cosine": "Cosine of crops of one tile",
    "other_cosine": "Cosine of crops of two tiles",
    "follows_composition": "Agreement follows tissue composition",
    "follows_colour": "Agreement follows colour",
    "accuracy_drop_beyond_noise": "Accuracy lost beyond noise",
    "accuracy_unrounded": "Accuracy before rounding to a file's pixels",
    "embedding_cosine": "Cosine to the clean vector",
    "ssim": "Likeness of the picture (SSIM)",
    "transfer_accuracy": "Accuracy on tiles made against another encoder",
    "transfer_cosine": "Cosine, tiles made against another encoder",
    "attack_check": "Rule of a sound attack, broken by",
    "macro_f1_gain": "Macro-F1 gained over the tile",
    "macro_f1_gain_same_tissue": "Macro-F1 gained, same tissue and bytes",
    "macro_f1_gain_same_field": "Macro-F1 gained by full resolution",
    "gain_equivalence_p": "p that the gain is not within the margin",
    "forward_passes": "Forward passes per place",
    "megapixels_forwarded": "Megapixels through the network per place",
    "megapixels_read": "Megapixels read per place",
    "macro_f1": "Macro-F1",
    "f1": "F1",
    "accuracy": "Accuracy",
    "f1_range_over_organs": "F1 of the best organ minus the worst",
    "f1_sd_over_organs": "F1, standard deviation over organs",
    "f1_tau_over_organs": "F1, spread over organs beyond sampling noise (τ)",
    "balanced_accuracy": "Balanced accuracy",
    "skewness": "Skewness",
    "kurtosis_excess": "Kurtosis, excess",
    "kurtosis_raw": "Kurtosis, raw",
    "singular_value_entropy": "Singular value entropy",
    "largest_singular_value_ratio": "Largest singular value ratio",
    "effective_rank": "Effective rank",
    "mean_cosine": "Mean cosine between vectors",
    "constant_dimensions": "Dimensions that never change",
}

#: Figures that count things: whole numbers.
COUNTS = frozenset({"constant_dimensions", "n_clusters"})

#: Names of the checks in a sentence; the others are told by their metric.
CHECKS: dict[tuple[str, str], str] = {
    ("ri_minus_null", ""): "robustness index",
    ("mknn", ""): "neighbours kept at 90°",
    ("croma_minus_null", ""): "median margin",
    ("clustering_score_minus_null", ""): "clusters",
    ("apd", ""): "performance drop",
    ("stain_kept_neighbours", ""): "neighbours kept when the stain changes",
    ("scanner_kept_neighbours", ""): "neighbours kept when the scanner changes",
    ("follows_morphology_minus_null", ""): "tissue against stain",
    ("label_survival", ""): "label without arrangement",
    ("accuracy_drop_beyond_noise", ""): "adversarial noise",
    ("macro_f1_gain", ""): "gain of a wider field",
    ("mknn_variance", ""): "variance over the angles (can hardly fail)",
    ("f1_range_over_organs", ""): "spread of F1 over organs",
    ("balanced_accuracy", "label"): "label read",
    ("balanced_accuracy", "center"): "center read",
}

#: What failing a check means, to be read after "Fails 2 of 5 checks:"; the third part is the
#: target of a probe.
FAILURES: dict[tuple[str, str, str], str] = {
    ("robustness_index", "ri", ""): "follows the center more than the tissue",
    ("robustness_index", "ri_ratio", ""): "lets the center decide as much as the tissue",
    (
        "robustness_index",
        "ri_minus_null",
        "",
    ): "follows the center more than an encoder that knows nothing would",
    (
        "rotation",
        "mknn",
        "",
    ): "keeps too few of a tile's neighbours when it is turned by 90°",
    (
        "robustness_margins",
        "croma_minus_null",
        "",
    ): "is nearer to the center than to the tissue, beyond chance",
    ("clustering_score", "clustering_score_minus_null", ""): "gathers tiles by center",
    ("performance_drop", "apd", ""): "loses accuracy where label and center are tied",
    (
        "appearance",
        "stain_kept_neighbours",
        "",
    ): "keeps too few of a tile's neighbours when its stain changes",
    (
        "appearance",
        "scanner_kept_neighbours",
        "",
    ): "keeps too few of a tile's neighbours when the scanner changes",
    (
        "cue_conflict",
        "follows_morphology_minus_null",
        "",
    ): "follows the stain more than the tissue",
    (
        "adversarial",
        "accuracy_drop_beyond_noise",
        "",
    ): "is misled by changes that nobody sees",
    ("field_of_view", "macro_f1_gain", ""): "sees too little in a tile",
    ("rotation", "mknn_variance", ""): "changes unevenly over the angles",
    ("rotation", "mknn_excess_drop", ""): "changes under rotation beyond what blur explains",
    ("retrieval", "f1_range_over_organs", ""): "finds some organs far better than others",
    ("retrieval", "macro_f1", ""): "finds the label less often than required",
    ("linear_probe", "balanced_accuracy", "label"): "label read too poorly",
    ("linear_probe", "balanced_accuracy", "center"): "center read too well",
}

#: A sign beside each word, so that a verdict is never told by colour alone.
VERDICT_SIGNS = {"pass": "✓", "fail": "✕", "inconclusive": "?", "not_applicable": "–"}
VERDICT_WORDS = {
    "pass": "PASS",
    "fail": "FAIL",
    "inconclusive": "INCONCLUSIVE",
    "not_applicable": "NOT APPLICABLE",
}
#: What is told of a control in place of a verdict: not whether it passes, but whether it answers as
#: it must. A red FAIL beside an encoder that has to fail would say the opposite of what it means.
CONTROL_SIGNS = {"behaves": "✓", "misbehaves": "✕", "open": "?", "unasked": "–"}
CONTROL_WORDS = {
    "behaves": "behaves",
    "misbehaves": "does not behave",
    "open": "could not be shown",
    "unasked": "nothing expected",
}

_SETTING_VALUES = {
    ("role", "cohort_k"): "",
    ("role", "encoder_k"): "the encoder's own number",
    ("role", "curve"): "",
    ("design", "all"): "all labels and centers",
    ("design", "paired_2x2"): "pairs of two labels and two centers",
    ("family", "mean"): "one vector per slide (mean)",
    ("family", "median_min"): "Yottixel search (median of minima)",
    ("metric", "euclidean"): "Euclidean distance",
    ("metric", "cosine"): "cosine distance",
    ("target", "label"): "telling the label",
    ("target", "center"): "telling the center",
    ("view", "rotated"): "",
    ("view", "rotated_back"): "rotated there and back",
    ("view", "shifted"): "shifted, losing as much tissue as a turn",
    ("view", "disc"): "behind a disc, the same tissue at any angle",
    ("control", "rotated_back"): "beyond the blur of turning there and back",
    ("control", "shifted"): "beyond a shift that loses as much tissue",
    ("over", "tile"): "",
    ("over", "mean"): "over the mean of its tiles",
    ("over", "whole"): "over one picture",
    ("noise", "sign_noise"): "",
    ("nuisance", "colour"): "",
    ("attack", "pgd-10"): "10 steps (PGD)",
    ("change", "macenko"): "another center's stain (Macenko)",
    ("change", "reinhard"): "another center's stain (Reinhard)",
    ("change", "jpeg"): "JPEG",
    ("change", "jitter"): "stain changed",
    ("features", "embedding"): "",
    ("features", "embedding_without_colour"): "colour regressed out",
    ("features", "colour"): "colour alone",
    ("view", "shuffled"): "patches shuffled",
    ("view", "rotated_in_place"): "patches turned in place",
    ("view", "clean"): "clean",
    ("view", "transferred"): "in the other stain",
    ("arm", "whole"): "as one picture",
    ("arm", "mean"): "mean of its tiles",
    ("arm", "attention"): "tiles weighed by attention",
    ("arm", "native"): "at full resolution",
    ("arm", "tile"): "the tile",
    ("attack", "none"): "clean",
    ("attack", "sign_noise"): "random noise",
    ("attack", "gaussian_noise"): "Gaussian noise",
    ("attack", "fgsm"): "one step (FGSM)",
    ("attack", "universal"): "one change for all tiles",
    ("vote", "top1"): "nearest match",
    ("vote", "mv3"): "majority of 3",
    ("vote", "mv5"): "majority of 5",
    ("scope", "within_organ"): "within the organ",
    ("scope", "across_organs"): "across organs",
}
_COUNTED = {"k": "neighbour", "n_tiles": "tile", "m": "nearest tile"}
#: Figures shown at once beside the checks, at the experiment's usual setting.
KEY_METRICS: dict[str, tuple[str, ...]] = {
    "robustness_index": ("ri", "knn_accuracy_label", "knn_accuracy_center"),
    "robustness_margins": ("croma", "croma_lower_tail", "mari"),
    "robustness_index_comparison": ("ri_difference",),
    "clustering_score": ("clustering_score", "ari_label", "ari_center"),
    "performance_drop": ("apd",),
    "center_auc": ("center_auc", "center_auc_drop"),
    "rotation": ("mknn_mean", "mknn_variance", "mknn_excess_drop"),
    "appearance": (),
    "cue_conflict": ("morphology_loss",),
    "texture": ("label_survival", "excess_shift"),
    "stain_probe": ("selectivity",),
    "crop_coherence": ("coherence", "follows_composition", "follows_colour"),
    "adversarial": ("accuracy",),
    "field_of_view": ("macro_f1", "gain_equivalence_p"),
    "calibration": (),
    "retrieval": ("macro_f1",),
}
#: Folders of an absolute path, POSIX or Windows; only what names the file itself stays.
_FOLDERS = re.compile(
    r"""(?:(?<=[\s'"(=\[,:;])|^)(?:file://)?(?:[A-Za-z]:)?[/\\](?:[^\s'"/\\]+[/\\])+"""
)
#: Rounds to 0.000; spelled out, its digits would hide the figures beside it.
_TINY = 0.0005
#: Ends of an interval closer than this differ by rounding alone.
_NO_WIDTH = 1e-9
_FORMULA = re.compile(r"^[=+\-@\t\r]")


def experiment_words(experiment: str) -> ExperimentWords:
    """The words for an experiment; a plain title where it has none of its own.

    Examples
    --------
    >>> experiment_words("colour_swap").title
    'Colour swap'
    """
    if experiment in EXPERIMENTS:
        return EXPERIMENTS[experiment]
    return ExperimentWords(humanise(experiment), "")


def experiment_name(experiment: str) -> str:
    """The short name of an experiment: its title up to the question.

    Examples
    --------
    >>> experiment_name("rotation")
    'Rotation'
    """
    return experiment_words(experiment).title.split(":")[0]


def experiment_order(experiments: Mapping[str, Any] | list[str]) -> list[str]:
    """Experiments without repeats, the known ones first and in the order they are told.

    Examples
    --------
    >>> experiment_order(["zeta", "rotation", "alpha", "robustness_index"])
    ['robustness_index', 'rotation', 'alpha', 'zeta']
    """
    present = set(experiments)
    return [name for name in EXPERIMENTS if name in present] + sorted(present - set(EXPERIMENTS))


def humanise(name: str) -> str:
    """A name from the tables as words.

    Examples
    --------
    >>> humanise("colour_swap")
    'Colour swap'
    """
    words = name.replace("_", " ").strip()
    return words[:1].upper() + words[1:]


def setting_text(setting: str) -> str:
    """A setting (sorted-key JSON) as words; what every reader takes for granted is left out.

    Examples
    --------
    >>> setting_text('{"angle": 90, "k": 10, "metric": "cosine", "view": "rotated"}')
    'at 90°, 10 neighbours, cosine distance'
    """
    parts: list[str] = []
    for key, value in json.loads(setting).items():
        known = _SETTING_VALUES.get((key, value)) if isinstance(value, str) else None
        if value is None:
            continue
        if known is not None:
            parts.append(known)
        elif key == "angle":
            parts.append(f"at {value:g}°" if isinstance(value, int | float) else f"at {value}")
        elif key == "metric":
            parts.append(str(value))
        elif key in _COUNTED and isinstance(value, int):
            parts.append(f"{value:,} {_COUNTED[key]}{'' if value == 1 else 's'}")
        elif isinstance(value, list):
            parts.append(" and ".join(str(entry) for entry in value))
        else:
            shown = value if isinstance(value, str | int | float) else json.dumps(value)
            parts.append(f"{key.replace('_', ' ')} {shown}")
    return ", ".join(part for part in parts if part)


def check_title(row: Row) -> str:
    """What a row measures: metric, stratum and setting in words.

    Examples
    --------
    >>> check_title({"metric": "f1", "stratum": "label=gland", "setting": '{"family": "mean"}'})
    'F1, label gland, one vector per slide (mean)'
    """
    return ", ".join(part for part in (plain_title(row), setting_text(row["setting"])) if part)


def plain_title(row: Row) -> str:
    """What a row measures, without its setting."""
    title = METRICS.get(row["metric"], humanise(row["metric"]))
    return title if row["stratum"] == "all" else f"{title}, {row['stratum'].replace('=', ' ')}"


def named_title(row: Row, title: str) -> str:
    """A title that begins with its experiment, once.

    Examples
    --------
    >>> named_title({"experiment": "retrieval"}, "Macro-F1")
    'Retrieval: Macro-F1'
    """
    name = experiment_name(row["experiment"])
    return title if title.startswith(name) else f"{name}: {title}"


def short_title(row: Row) -> str:
    """What a row measures without its settings, to stand in a sentence.

    Examples
    --------
    >>> short_title({"metric": "macro_f1", "stratum": "organ=kidney", "setting": "{}"})
    'macro-F1 in organ kidney'
    """
    title = METRICS.get(row["metric"], humanise(row["metric"]))
    title = title if title[1:2].isupper() or title[1:2].isdigit() else title[0].lower() + title[1:]
    return title if row["stratum"] == "all" else f"{title} in {row['stratum'].replace('=', ' ')}"


def check_name(row: Row) -> str:
    """The short name of a check, to stand in a sentence.

    Examples
    --------
    >>> check_name({"metric": "ri_minus_null", "stratum": "all", "setting": "{}"})
    'robustness index'
    """
    return CHECKS.get((row["metric"], _target(row))) or short_title(row)


def failure_text(row: Row) -> str:
    """What failing this check says about the encoder.

    Examples
    --------
    >>> failure_text({"experiment": "linear_probe", "metric": "balanced_accuracy",
    ...               "stratum": "all", "setting": '{"target": "center"}'})
    'center read too well'
    """
    known = FAILURES.get((row["experiment"], row["metric"], _target(row)))
    if known:
        return known
    return f"{humanise(row['experiment']).lower()}: {short_title(row)}"


def held_against(row: Row) -> str:
    """A figure beside what it must be.

    Examples
    --------
    >>> held_against({"metric": "mknn", "value": 0.726, "threshold": 0.8, "direction": "above"})
    '0.726, must be above 0.8'
    """
    return f"{value_text(row)}, must be {threshold_text(row)}"


def _target(row: Row) -> str:
    return str(json.loads(row["setting"]).get("target", ""))


def number(value: float | None) -> str:
    """Three significant digits, or n/a.

    Examples
    --------
    >>> [number(value) for value in (0.5, -0.01234, 110.0, 41234.0, 0.0, 0.000012, None)]
    ['0.500', '−0.0123', '110', '41,234', '0', '1.20e−05', 'n/a']
    """
    if value is None:
        return "n/a"
    if value == 0:
        return "0"
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")
    return text.replace("-", "−")


def value_text(row: Row) -> str:
    """A row's value; whole where it counts things.

    Examples
    --------
    >>> value_text({"metric": "constant_dimensions", "value": 7.0})
    '7'
    """
    return _beside(row, row["value"], ())


def interval_text(row: Row) -> str:
    """Value with its 95% interval.

    Examples
    --------
    >>> interval_text({"value": 0.5, "ci_low": 0.4, "ci_high": 0.61})
    '0.500 [0.400, 0.610]'
    >>> interval_text({"value": -0.2, "ci_low": -0.33, "ci_high": 6.03e-6})
    '−0.200 [−0.330, 0.000]'
    """
    value, ends = row["value"], (row["ci_low"], row["ci_high"])
    if value is None or None in ends:
        return value_text(row)
    low, high = (_beside(row, end, (value, *ends)) for end in ends)
    return f"{_beside(row, value, ends)} [{low}, {high}]"


def has_width(row: Row) -> bool:
    """Whether the interval spans anything; True where there is none.

    Examples
    --------
    >>> has_width({"ci_low": 1.0, "ci_high": 1.0})
    False
    """
    low, high = row["ci_low"], row["ci_high"]
    return low is None or high is None or abs(high - low) > _NO_WIDTH * max(1.0, abs(high))


def null_text(row: Row) -> str:
    """The null as a number or a range; n/a where there is none.

    Examples
    --------
    >>> null_text({"null_low": 0.2, "null_high": 0.25})
    '0.200 to 0.250'
    """
    low, high = row["null_low"], row["null_high"]
    if low is None or high is None or number(low) == number(high):
        return _beside(row, low if low is not None else high, ())
    return f"{_beside(row, low, (high,))} to {_beside(row, high, (low,))}"


def _beside(row: Row, value: float | None, others: Sequence[float]) -> str:
    """A number as it is read beside others: what is tiny next to them is 0.000."""
    if value is None:
        return number(value)
    if row.get("metric") in COUNTS:
        return f"{value:,.0f}".replace("-", "−")
    largest = max((abs(other) for other in others), default=0.0)
    if 0 < abs(value) < _TINY and abs(value) < largest / 100:
        return "0.000"
    return number(value)


def threshold_text(row: Row) -> str:
    """What a trustworthy encoder's figure must be; the threshold as it was written.

    Examples
    --------
    >>> threshold_text({"threshold": 0.8, "direction": "above"})
    'above 0.8'
    """
    if row["threshold"] is None:
        return ""
    threshold = f"{row['threshold']:.10g}".replace("-", "−")
    return f"{row['direction'] or ''} {threshold}".strip()


def without_folders(text: str) -> str:
    """Text in which absolute paths keep only the file's name: a report is read elsewhere.

    Examples
    --------
    >>> without_folders("cannot open '/data/site a/x.svs', tissue and/or pen")
    "cannot open '…/site a/x.svs', tissue and/or pen"
    >>> without_folders("cannot open /data/x.svs")
    'cannot open …/x.svs'
    """
    return _FOLDERS.sub("…/", text)


def safe_cells(table: pl.DataFrame) -> pl.DataFrame:
    """A table whose text no spreadsheet runs as a formula: such cells get a leading apostrophe.

    Parameters
    ----------
    table
        Any table; only text columns are touched.

    Examples
    --------
    >>> safe_cells(pl.DataFrame({"label": ["=1+1", "gland"], "value": [-1, 2]})).rows()
    [("'=1+1", -1), ('gland', 2)]
    """
    text = pl.col(pl.String())
    risky = text.str.contains(_FORMULA.pattern)
    return table.with_columns(pl.when(risky).then(pl.lit("'") + text).otherwise(text).name.keep())


def render_summary(
    findings: pl.DataFrame,
    controls: pl.DataFrame,
    verdicts: pl.DataFrame,
    provenance: Mapping[str, Any],
) -> str:
    """The audit on one page of Markdown: verdicts, checks, controls.

    Parameters
    ----------
    findings, controls, verdicts
        From :mod:`.findings`.
    provenance
        Cohort's name and whether it is the phantom.

    Returns
    -------
    str
        Markdown; the same tables give the same text.
    """
    lines = [f"# Audit of encoders: {_md(provenance['cohort'])}", ""]
    if provenance.get("is_phantom"):
        lines += [PHANTOM_NOTE, ""]
    lines += ["## Verdicts", "", "| encoder | verdict | why |", "| --- | --- | --- |"]
    lines += [
        f"| {_md(row['encoder'] + _role_note(row))} | {verdict_words(row, controls)} "
        f"| {_md(row['sentence'])} |"
        for row in verdicts.iter_rows(named=True)
    ]
    lines += ["", "## Checks", ""]
    lines += ["| check | encoder | value [95% interval] | null | must be | verdict | reason |"]
    lines += ["| --- | --- | --- | --- | --- | --- | --- |"]
    lines += [_check_line(row, controls) for row in findings.iter_rows(named=True)]
    if not all(has_width(row) for row in findings.iter_rows(named=True)):
        lines += ["", f"† {NO_WIDTH_NOTE}"]
    lines += ["", "## Controls", "", "| control | experiment | expected | observed | behaves |"]
    lines += ["| --- | --- | --- | --- | --- |"]
    lines += [
        f"| {_md(row['control'])} | {_md(row['experiment'])} | {_md(row['expectation'])} "
        f"| {_md(row['observed'])} | {behaves_text(row)} |"
        for row in controls.iter_rows(named=True)
    ]
    return "\n".join(lines) + "\n"


#: Beside every interval without width.
NO_WIDTH_NOTE = "No width: every resampled cohort gave the same; no proof for the next cohort."

#: Shown wherever the cohort was drawn and not cut from tissue.
PHANTOM_NOTE = (
    "This cohort is drawn by the project itself: a calibration target with known truth, not a "
    "claim about tissue."
)


def behaves_text(row: Row) -> str:
    """Yes, no, or that it could not be told."""
    if row["behaves"] is None:
        needed = row["blocks"] or row["blocks_pass"]
        return "could not be shown" if needed else "not applicable"
    return "yes" if row["behaves"] else "NO"


def findings_metrics(findings: pl.DataFrame, verdicts: pl.DataFrame) -> dict[str, dict[str, Any]]:
    """Verdicts and unrounded figures for ``dvc metrics show``.

    Returns
    -------
    dict
        ``{encoder: {"verdict": ..., metric: value}}``. A metric judged more than once for an
        encoder carries its experiment, stratum and setting in the name; an undefined figure
        reads "n/a".
    """
    metrics: dict[str, dict[str, Any]] = {
        row["encoder"]: {"verdict": row["verdict"]} for row in verdicts.iter_rows(named=True)
    }
    often = findings.select("encoder", "metric").is_duplicated()
    for row, repeated in zip(findings.iter_rows(named=True), often, strict=True):
        name = row["metric"]
        if repeated:
            name = f"{row['experiment']} {name} {row['stratum']} {row['setting']}"
        value = "n/a" if row["value"] is None else row["value"]
        metrics.setdefault(row["encoder"], {})[name] = value
    return metrics


def _role_note(row: Row) -> str:
    return " (control)" if row["role"] == "control" else ""


def marked_interval(row: Row) -> str:
    """Value and interval, marked where the interval has no width."""
    return interval_text(row) + ("" if has_width(row) else " †")


#: Control checks that had to be answered.
_ASKED = pl.col("behaves").is_not_null() | pl.col("blocks") | pl.col("blocks_pass")


def control_state(controls: pl.DataFrame, control: str, experiment: str | None = None) -> str:
    """Whether a control answers as it must: ``behaves``, ``misbehaves``, ``open``, ``unasked``.

    Open is what only takes back passes: the cohort is too small to tell.

    Parameters
    ----------
    controls
        From :mod:`.findings`.
    control
        Its name.
    experiment
        One experiment; None for all of them.
    """
    own = controls.filter(pl.col("control") == control)
    if experiment is not None:
        own = own.filter(pl.col("experiment") == experiment)
    asked = own.filter(_ASKED)
    if asked.is_empty():
        return "unasked"
    if asked.filter("blocks").height:
        return "misbehaves"
    return "open" if asked.filter("blocks_pass").height else "behaves"


def verdict_words(row: Row, controls: pl.DataFrame, experiment: str | None = None) -> str:
    """An encoder's verdict; of a control, whether it behaves, and what was measured."""
    verdict = VERDICT_WORDS[row["verdict"]]
    if row["role"] != "control":
        return verdict
    state = CONTROL_WORDS[control_state(controls, row["encoder"], experiment)]
    return f"{state} (measured: {verdict.lower()})"


def behaving(controls: pl.DataFrame) -> tuple[int, int]:
    """How many control checks behave, of how many that had to."""
    asked = controls.filter(_ASKED)
    return int(asked["behaves"].fill_null(value=False).sum()), asked.height


def _check_line(row: Row, controls: pl.DataFrame) -> str:
    cells = [
        named_title(row, check_title(row)),
        row["encoder"] + _role_note(row),
        marked_interval(row),
        null_text(row),
        threshold_text(row),
        verdict_words(row, controls, row["experiment"]),
        row["reason"] or "",
    ]
    return "| " + " | ".join(_md(cell) for cell in cells) + " |"


def _md(text: object) -> str:
    """Text that stays text in a Markdown table: no markup, no link, no new cell."""
    flat = " ".join(without_folders(str(text)).split())
    flat = flat.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*\[\]|])", r"\\\1", flat).replace("](", "]\\(")
