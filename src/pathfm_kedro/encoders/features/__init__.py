"""Features that others made: read by their keys, checked, and written in their layouts.

``find_feature_files`` says which file of a folder is about which slide, ``read_features`` reads one,
``refuse_*`` and ``unlike_most`` hold it against the slide, the entry's name and the other files,
``write_features`` writes.
"""

from pathfm_kedro.encoders.features.faults import (
    encoder_agrees,
    refuse_off_slide,
    refuse_other_encoder,
    unlike_most,
)
from pathfm_kedro.encoders.features.finding import find_feature_files, slide_of_file
from pathfm_kedro.encoders.features.reading import LAYOUTS, read_features
from pathfm_kedro.encoders.features.slide_features import (
    FeatureFileError,
    SlideFeatures,
    measured_loss,
)
from pathfm_kedro.encoders.features.writing import WRITTEN, suffix_of, write_features

__all__ = [
    "LAYOUTS",
    "WRITTEN",
    "FeatureFileError",
    "SlideFeatures",
    "encoder_agrees",
    "find_feature_files",
    "measured_loss",
    "read_features",
    "refuse_off_slide",
    "refuse_other_encoder",
    "slide_of_file",
    "suffix_of",
    "unlike_most",
    "write_features",
]
