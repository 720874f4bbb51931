"""The report's texts about each evaluation and its picture, and the report's CSS."""

MEANINGS = {
    "retrieval": (
        "Each clip's sound is a query for which all clips are ranked by their pictures, and the "
        "other way round. R@k is the share of queries whose own clip is among the first k: higher "
        "is better. The median rank says where the own clip lands: 1 is best. The one table has "
        "the diagonal mean, which compares frames of the same moment.",
        "Queries by sound, one a row: the log-mel, the clip's own frames and its rank, and the "
        "best matches with their similarity; the true match has a green frame",
    ),
    "probe": (
        "A small classifier learns the clips' classes from the frozen encoder's features and is "
        "scored on clips that it has not seen: mean average precision (mAP) over the classes, and "
        "accuracy where each clip has one label. Higher is better. In the picture a bright "
        "diagonal is good.",
        "Confusion matrix: for the clips of each class, how their best-scored classes are spread",
    ),
    "classify": (
        "The whole network was trained to tell the classes, beginning with the pre-trained "
        "weights. The predictions for all frames of a clip are averaged. mAP is the mean average "
        "precision over the classes, AUC the mean area under the ROC curve, and d' its distance "
        "in deviations: higher is better. The model has seen both modalities; the rows with one "
        "alone say what it knows if the other is missing. The same training from scratch shows "
        "what the pre-training is worth.",
        "Confusion matrix: for the clips of each class, how their best-scored classes are spread",
    ),
    "tokens": (
        "What does each kind of token know of the clips' classes? Registers, patches and the "
        "global token of the encoders are probed apart, by a linear layer and by the probe's "
        "transformer. Higher mAP is better; it has no trivial baseline of its own here, see the "
        "probe's class frequencies.",
        "Bars of the mAP of each kind of token, for both heads, with lines for an untrained model",
    ),
    "segmentation": (
        "Where in the picture is what is heard? The paper's map is the likeness of the sound's "
        "global token to each patch. Evidence is how much better the picture matches the sound "
        "where a patch is visible. mAP ranks the pixels, mIoU is the overlap at the best "
        "threshold, both means over the classes. Pointing is the share of the frames whose highest "
        "pixel lies on the object. J is the mean IoU of single frames and F their F-score; where "
        "the truth is boxes, cIoU is the share of images whose consensus IoU is at least 0.5, and "
        "AUC the area over all such thresholds. A map beats the silent object where it is higher, "
        "on average, on the object that sounds. The ROC AUC says how well a map's highest value "
        "tells the own sound from one that is not on screen. Higher is better. What another clip's "
        "sound scores is not owed to the sound.",
        "Some frames, one a column: the image, its maps of the own and of other sounds, each kind "
        "on one scale of colours, and the true pixels",
    ),
    "temporal": (
        "Clips are cut into segments by clustering their frames' embeddings of sound, picture or "
        "both; every row is told the true number of segments. Boundary F1 counts the cuts that "
        "are found, the adjusted Rand index how well the frames are grouped (0 is chance). Higher "
        "is better.",
        "Some clips: their frames, their log-mel, and their segments as coloured bars by sound, "
        "picture and both, above the truth where it is known",
    ),
    "reconstruction": (
        "Hidden patches are predicted from the visible ones. The error is the mean square in "
        "units of each patch's own spread, so that predicting its mean has about 1: lower is "
        "better. The pictures put back each patch's true mean and spread, which no model has; "
        "beside them stands what these alone show.",
        "Some frames and log-mels, one clip a row: masked, filled with true means only, predicted "
        "by the model, and the original",
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
