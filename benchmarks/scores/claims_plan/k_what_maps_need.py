"""(k) What decides whether a map finds the object that sounds (paper Tables 3 and 7, section 3.4).

The segmentation study (results/segmentation_study.md) asked this of the paper's map with one seed.
"""

TITLE = "What maps need"
_OTHER = "another clip's sound"
ROWS = {
    "demo": {"title": "as the demo"},
    "one_decoder_head": {"changes": {"model.decoder_heads": 1}, "title": "one decoder head"},
    "no_global": {"row": "no_global", "title": "no global token"},
    "no_registers": {"row": "registers_0", "title": "no registers"},
    "neither": {"row": "no_global,registers_0", "title": "no global token, no registers"},
    "three_quarters": {"row": "mask_0.75", "title": "three quarters masked"},
    "no_reconstruction": {
        "changes": {"loss.reconstruction_weight": 0.0},
        "title": "no reconstruction",
    },
}
COLUMNS = [
    "segmentation/cosine/mAP",
    f"segmentation/cosine/{_OTHER}/mAP",
    "segmentation/cosine/pointing",
    "segmentation/evidence/mAP",
    f"segmentation/evidence/{_OTHER}/mAP",
    "segmentation/evidence/pointing",
]
BASELINE = "demo"
CLAIMS = [
    {
        "text": f"With {better}, {kind} finds the object better than {worse}",
        "row": row,
        "than": than,
        "column": f"segmentation/{score}/mAP",
    }
    for kind, score in (("the paper’s map", "cosine"), ("evidence", "evidence"))
    for better, worse, row, than in (
        ("a global token", "without it", "demo", "no_global"),
        ("registers", "without them", "demo", "no_registers"),
        ("reconstruction", "without it", "demo", "no_reconstruction"),
        ("three quarters masked", "with half", "three_quarters", "demo"),
    )
]
