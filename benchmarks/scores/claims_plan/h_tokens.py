"""(h) What registers, patches and the global token know (paper Table 12)."""

TITLE = "What each kind of token knows"
ROWS = {
    "registers_0": {"row": "registers_0", "title": "0 registers"},
    "registers_8": {"row": "registers_8", "title": "8 registers"},
}
COLUMNS = [
    "tokens/transformer/registers",
    "tokens/transformer/patches",
    "tokens/transformer/global",
]
BASELINE = "registers_0"
CLAIMS = [
    {
        "text": "Registers make the global token know more",
        "row": "registers_8",
        "than": "registers_0",
        "column": "tokens/transformer/global",
    },
    {
        "text": "Registers make the patches know less",
        "row": "registers_0",
        "than": "registers_8",
        "column": "tokens/transformer/patches",
    },
]
