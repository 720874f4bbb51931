"""Imports point one way, and no file outgrows a reader."""

import ast
import pathlib

ROOT = pathlib.Path(__file__).parent.parent
TIERS = {
    0: (
        "cli processes torch_files media audio patches masking layers losses optim sharding "
        "mismatch fingerprint dataset_folder media_source lean"
    ),
    1: "model dataset checkpoint metrics step pretrained probe_head mae torch_names torch_kinds",
    2: "features",
    3: (
        "evals.common evals.precision evals.scores evals.ranking evals.clip_lists "
        "evals.baselines evals.retrieval "
        "evals.curves evals.headlines evals.report_texts evals.report evals.summary "
        "evals.probe_scores evals.probe_training evals.probe evals.tokens "
        "evals.segmentation_scores evals.segmentation evals.temporal_scores evals.temporal "
        "evals.reconstruction evals.periodic"
    ),
    4: "settings train convert",
}
TIER = {f"cavmae_sync_jax.{name}": tier for tier, names in TIERS.items() for name in names.split()}
LONGEST = 400


def sources():
    for folder in ("cavmae_sync_jax", "data_prep", "configs"):
        yield from sorted((ROOT / folder).rglob("*.py"))


def name_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imports(path):
    """Modules of ours that a file imports at its top level (`from package import module` too)."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names] + [node.module]
        else:
            continue
        yield from (
            n for n in names if n.split(".")[0] in ("cavmae_sync_jax", "data_prep", "configs")
        )


def test_every_module_has_a_tier():
    ours = {name_of(p) for p in sources() if p.name != "__init__.py"}
    package = {name for name in ours if name.startswith("cavmae_sync_jax")}
    assert package == set(TIER)


def allowed(name, target):
    """Whether module `name` may import `target`."""
    package = target.split(".")[0]
    if name.startswith("configs") or package == "configs":
        return False
    if name.startswith("data_prep"):
        return TIER.get(target, 0) <= 1
    return package != "data_prep" and TIER.get(target, 0) <= TIER.get(name, 0)


def test_imports_point_one_way():
    pairs = [(name_of(path), target) for path in sources() for target in imports(path)]
    assert len(pairs) > 40
    assert [pair for pair in pairs if not allowed(*pair)] == []


def test_files_stay_short():
    longest = {name_of(p): len(p.read_text().splitlines()) for p in sources()}
    assert {name: lines for name, lines in longest.items() if lines > LONGEST} == {}
