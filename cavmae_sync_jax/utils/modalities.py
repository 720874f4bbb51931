"""The names of the two modalities, which data, models and evaluations share."""

AUDIO, VISUAL, BOTH = "audio", "visual", "both"


MODALITIES = (AUDIO, VISUAL)
OPPOSITE = {AUDIO: VISUAL, VISUAL: AUDIO}
