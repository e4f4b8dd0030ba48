"""Which encoders are another one with its confounder taken out."""

import pytest

from pathfm_kedro.encoders.spec import EncoderSpec
from pathfm_kedro.mitigations import mitigated_from

BASE = {"model": "timm:resnet18"}


def test_every_kind_of_variant_is_held_against_the_encoder_without():
    found = mitigated_from(
        {
            "base": BASE | {"runtime": "eager"},
            "averaged": BASE | {"mitigation": "rotation_average"},
            "centred": {"model": "harmonised:base", "mitigation": "centring"},
            "published": {"model": "timm:resnet34", "robustified_from": "base"},
            "alone": {"model": "timm:resnet50", "mitigation": "stain_normalisation"},
            "plain": {"model": "timm:resnet26"},
        }
    )
    assert found == {
        "centred": ("base", "centring"),
        "averaged": ("base", "rotation_average"),
        "published": ("base", "robustified"),
    }


@pytest.mark.parametrize("base", ["nobody", "own", "centred", "other"])
def test_robustified_from_must_name_another_encoder_that_is_no_variant(base):
    encoders = {
        "base": BASE,
        "centred": {"model": "harmonised:base", "mitigation": "centring"},
        "other": {"model": "timm:y", "robustified_from": "base"},
        "own": {"model": "timm:x", "robustified_from": base},
    }
    with pytest.raises(ValueError, match=r"encoders\.own\.robustified_from is .* there are"):
        mitigated_from(encoders)


def test_what_it_was_made_from_does_not_change_the_encoder_itself():
    plain = EncoderSpec.from_parameters("e", BASE)
    robust = EncoderSpec.from_parameters("e", BASE | {"robustified_from": "base"})
    assert plain.key() == robust.key()
    with pytest.raises(ValueError, match="robustified_from is 3"):
        EncoderSpec.from_parameters("e", BASE | {"robustified_from": 3})
