"""The report's texts about each evaluation and its picture, and the report's CSS."""


def data_text(identity: str) -> str:
    """A dataset's identity as it is shown: stored ones have "bytes" behind "9 KiB", too."""
    return identity.replace("iB bytes", "iB")


MEANINGS = {
    "retrieval": (
        "Each clip's sound is a query for which all clips are ranked by their pictures, and the "
        "other way round. R@k is the share of queries whose own clip is among the first k. Higher "
        "is better. The median rank is that of the own clip; 1 is best. The table of all "
        "evaluations has the diagonal mean, which compares frames of the same moment, or the first "
        "aggregation if that was not scored.",
        "Queries by sound, one per row: the log-mel, the clip's own frames and its rank, and the "
        "best matches with their similarity; the true match has a green frame",
    ),
    "probe": (
        "A small classifier learns the clips' classes from the frozen encoder's features and is "
        "scored on clips that it has not seen: mean average precision (mAP) over the classes, and "
        "accuracy if each clip has one label. Higher is better. In the picture a bright diagonal "
        "is good.",
        "Confusion matrix: for the clips of each class, how their best-scored classes are spread",
    ),
    "classify": (
        "The whole network was trained to classify, beginning with the pre-trained "
        "weights. The predictions for all frames of a clip are averaged. mAP is the mean average "
        "precision over the classes, AUC the mean area under the ROC curve, and d' its distance "
        "in deviations. Higher is better. The model was trained with both modalities. Rows with "
        "one modality show what it knows if the other is missing. The same training from scratch "
        "shows what the pre-training adds.",
        "Confusion matrix: for the clips of each class, how their best-scored classes are spread",
    ),
    "tokens": (
        "What does each kind of token know of the clips' classes? Registers, patches and the "
        "global token of the encoders are probed separately, by a linear layer and by the probe's "
        "transformer. Higher mAP is better. Its trivial baseline is the probe's: the class "
        "frequencies.",
        "Bars of the mAP of each kind of token, for both heads, with lines for an untrained model",
    ),
    "segmentation": (
        "Where in the picture does the sound come from? The paper's map is the cosine of the "
        "sound's global token with each patch. Evidence is how much better the picture matches the "
        "sound when a patch is visible. mAP ranks the pixels, and mIoU is the overlap at the best "
        "threshold. Both are means over the classes. Pointing is the share of the frames whose "
        "highest pixel lies on the object. J is the mean IoU of single frames, and F their "
        "F-score. If the truth is boxes, cIoU is the share of images whose consensus IoU is at "
        "least 0.5, and AUC the area over all such thresholds. A map beats the silent object if "
        "its mean is higher on the object that sounds. The ROC AUC says how well a map's highest "
        "value separates the own sound from one that is not on screen. Higher is better. What "
        "another clip's sound scores does not come from the sound.",
        "Some frames, one per column: the image, its maps of the own and of other sounds, each "
        "kind on one scale of colours, and the true pixels",
    ),
    "temporal": (
        "Clips are cut into segments by clustering their frames' embeddings of sound, picture or "
        "both. Every row knows the true number of segments. Boundary F1 counts the cuts that are "
        "found. The adjusted Rand index says how well the frames are grouped (0 is chance). Higher "
        "is better.",
        "Some clips: their frames, their log-mel, and their segments as coloured bars by sound, "
        "picture and both, above the truth where it is known",
    ),
    "reconstruction": (
        "Hidden patches are predicted from the visible ones. The error is the mean square in "
        "units of each patch's own deviation. Predicting the mean has an error of about 1. Lower "
        "is better. For the pictures, each patch gets its true mean and deviation, which no model "
        "predicts. Beside them is a picture of the means alone.",
        "Some frames and log-mels, one clip per row: masked, filled with true means only, "
        "predicted by the model, and the original",
    ),
}
CSS = """
:root { color-scheme: light; --line: #d5d9e0; --dim: #5a6270; --link: #1a55a8; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 1rem 1.2rem 4rem; color: #1b1f27;
  background: #fff; font: 1rem/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 1rem 0; }
h2 { font-size: 1.3rem; margin: 2.6rem 0 .6rem; border-bottom: 2px solid var(--line); }
a { color: var(--link); }
p, li { max-width: 46rem; }
nav ul { columns: 2; padding-left: 1.2rem; max-width: 46rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; }
dt { color: var(--dim); }
dd { margin: 0; overflow-wrap: anywhere; }
.wide { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; }
thead th { color: var(--dim); font-weight: 600; vertical-align: bottom; }
tbody th { font-weight: 400; }
.scores th[colspan] { background: #f1f4f8; font-weight: 600; }
.all td { text-align: right; white-space: nowrap; }
.all thead th + th { text-align: right; }
.all .ours th, .all .ours td { font-weight: 600; }
.better { color: #17663a; }
.mixed { color: #8a4b00; font-weight: 600; }
.worse { color: #a8201a; font-weight: 600; }
.curves { display: grid; gap: 0 1rem;
  grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); }
.curves figure { margin: .4rem 0; }
.curves figcaption { display: none; }
.beside { display: grid; gap: .6rem 1rem;
  grid-template-columns: repeat(auto-fill, minmax(24rem, 1fr)); }
figure { margin: 1rem 0; break-inside: avoid; }
img { display: block; max-width: 100%; height: auto; }
figcaption, .note { color: var(--dim); font-size: .9rem; }
pre { background: #f1f4f8; padding: .6rem .8rem; font-size: .85rem; white-space: pre-wrap;
  overflow-wrap: anywhere; }
summary { cursor: pointer; color: var(--link); }
@media (max-width: 44rem) {
  nav ul { columns: 1; }
  dl { display: block; }
  dd { margin-bottom: .5rem; }
  .scores, .scores tbody, .scores tr, .scores th, .scores td { display: block; }
  .scores thead { display: none; }
  .scores td { border: 0; padding: .05rem .7rem; }
  .scores td::before { content: attr(data-label) ": "; color: var(--dim); font-weight: 400; }
  .scores tr { border-bottom: 1px solid var(--line); padding: .3rem 0; }
  .scores tbody th { border: 0; font-weight: 600; }
}
@media print {
  body { max-width: none; padding: 0; font-size: 10pt; }
  tr { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  img { max-height: 23cm; width: auto; }
  .wide { overflow: visible; }
  .all { font-size: 8pt; }
}
"""
