"""Small data sets: refused in one sentence, or trained and evaluated with finite numbers."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, slow
from PIL import Image

from smilevae import runs
from smilevae.data.synthetic import SyntheticFaces
from smilevae.editing import attributes, fitting, mesh
from smilevae.evaluation import realism, report, scoring
from smilevae.evaluation.options import EvaluateOptions
from smilevae.runs import checkpoint

MAX_PEOPLE, MAX_PHOTOS = 12, 30  # of a person in a class
NUM_DRAWN = 30  # faces of each class, from which all data sets are made


@dataclass(frozen=True)
class Case:
    """A data set and its split. A person's photos are of both classes, of one, or have none."""

    people: int
    photos: tuple[int, int]  # least and most of a person in a class
    # one: each person is in one class; single: there is one class; none: no classes
    classes: str = "both"
    unlabelled: str = ""  # same or other: more photos of the same people, or of others
    attributes: bool = False  # a table of two more attributes
    seed: int = 0  # of the numbers of photos and of the split
    fractions: tuple[float, float] = (0.2, 0.0)  # held out, tested
    evaluate: bool = False  # by the training itself
    copies: bool = False  # every file is there twice


def drawn_case(seed: int) -> Case:
    """A random case: of many photos of each person or of few."""
    rng = np.random.default_rng(seed)
    most = int(rng.integers(1, MAX_PHOTOS + 1))
    return Case(
        people=int(rng.integers(1, MAX_PEOPLE + 1)),
        photos=(MAX_PHOTOS - 5, MAX_PHOTOS) if rng.random() < 0.5 else (1, most),
        classes=str(rng.choice(["both", "one", "single", "none"], p=[0.5, 0.35, 0.05, 0.1])),
        unlabelled=str(rng.choice(["", "same", "other"], p=[0.6, 0.2, 0.2])),
        attributes=bool(rng.random() < 0.3),
        seed=seed,
        fractions=(float(rng.choice([0.2, 0.4])), float(rng.choice([0.0, 0.2]))),
        evaluate=bool(rng.random() < 0.2),
        copies=bool(rng.random() < 0.1),
    )


REFUSED = {"one person", "one photo of each class", "one class", "two people, one class each"}
# Those that crashed once come first; then small ones of every other kind
KNOWN = {
    "two training people": Case(3, (20, 21)),
    "half of the training people are one of each class": Case(6, (20, 22), "one", seed=1),
    "one held-out person": Case(5, (20, 22), seed=1),
    "one held-out person, and the training evaluates": Case(5, (20, 20), seed=2, evaluate=True),
    "a half whose labelled people have one class": Case(9, (20, 22), "one", "other"),
    "three held-out faces lack it": Case(9, (1, 12), seed=2160),
    "every file twice": Case(6, (10, 11), seed=4, copies=True),
    "other attributes": Case(6, (10, 11), seed=4, attributes=True),
    "one person": Case(1, (20, 20)),
    "one photo of each class": Case(1, (1, 1)),
    "two people, one photo of each class": Case(2, (1, 1)),
    "two people, one class each": Case(2, (2, 3), "one"),
    "two people, many photos": Case(2, (20, 20)),
    "three people, one photo": Case(3, (1, 1), "one"),
    "one class": Case(4, (3, 4), "single"),
    "no classes": Case(4, (5, 9), "none"),
    "no classes, and more of the same people": Case(4, (5, 9), "none", "same", seed=6),
    "a test part": Case(8, (1, 3), fractions=(0.2, 0.2)),
    "more photos of the same people": Case(4, (5, 6), "both", "same", seed=12),
    "few labels of other people": Case(4, (1, 2), "one", "other", attributes=True),
}


@pytest.fixture(scope="session")
def pool():
    """Faces that smile, then as many that do not: (2, NUM_DRAWN, 64, 64, 3)."""
    faces = SyntheticFaces(NUM_DRAWN, NUM_DRAWN, 0, seed=7)
    drawn = [np.asarray(faces.draw(row)) for row in range(len(faces))]
    return np.array(drawn).reshape(2, NUM_DRAWN, 64, 64, 3)


def photos_of(case: Case) -> list[tuple[str, str, int]]:
    """Folder, name and class of every photo."""
    rng = np.random.default_rng(case.seed)
    folders = ["non_smile", "smile"]
    if case.classes in ("single", "none"):
        folders = ["smile" if case.classes == "single" else "."] * 2
    photos = []
    for number in range(case.people):
        person = f"P{rng.integers(10**6):06}"
        for label in [number % 2] if case.classes == "one" else (0, 1):
            for photo in range(rng.integers(case.photos[0], case.photos[1] + 1)):
                name = f"{person}_{label}{photo:02d}"
                photos.append((f"labelled/{folders[label]}", name, label))
        if case.unlabelled:
            more = person if case.unlabelled == "same" else f"P{rng.integers(10**6):06}"
            for photo in range(rng.integers(1, 11)):
                photos.append(("unlabelled", f"{more}_9{photo:02d}", number % 2))
    return photos


def write_photos(case: Case, pool: np.ndarray, root: Path) -> list[str]:
    """Draw the photos of a case; gives the words of the command line that name them."""
    rng = np.random.default_rng(case.seed)
    photos = photos_of(case)
    for folder, name, label in photos:
        noise = rng.integers(-8, 9, pool.shape[2:])
        pixels = (pool[label, rng.integers(NUM_DRAWN)] + noise).clip(0, 255).astype(np.uint8)
        (root / folder).mkdir(parents=True, exist_ok=True)
        for copy in range(1 + case.copies):
            Image.fromarray(pixels).save(root / folder / f"{name}{copy}.bmp")
    words = ["data=folder", f"data.root={root / 'labelled'}", f"data.split_seed={case.seed % 10}"]
    words += [f"data.val_fraction={case.fractions[0]}", f"data.test_fraction={case.fractions[1]}"]
    if case.unlabelled:
        words.append(f"data.unlabelled={root / 'unlabelled'}")
    if case.attributes:
        rows = [f"{name}0.bmp,{rng.integers(2)},{rng.random():.3f}" for _, name, _ in photos]
        (root / "table.csv").write_text("\n".join(["file,hat,age", *rows]) + "\n")
        words.append(f"data.attributes={root / 'table.csv'}")
    return words


@pytest.fixture
def quick(monkeypatch):
    """Less of what takes long; the face mesh is a random projection of the pixels."""
    rng = np.random.default_rng(0)
    base = rng.random((mesh.NUM_POINTS, 2))
    to_points = 0.002 * rng.standard_normal((3 * 8 * 8, mesh.NUM_POINTS * 2))
    to_features = torch.from_numpy(rng.standard_normal((3 * 8 * 8, mesh.NUM_FEATURES))).float()

    def see(x: torch.Tensor, margin: int = 0) -> mesh.Seen:
        small = torch.nn.functional.adaptive_avg_pool2d(x.float().cpu(), 8).flatten(1)
        points = base + (small.double().numpy() @ to_points).reshape(len(x), -1, 2)
        return mesh.Seen(small @ to_features, points, np.ones(len(x)))

    monkeypatch.setattr(mesh, "see", see)
    fewer = {"SUBSETS": 4, "MAX_EDITED": 10, "MAX_OTHERS": 5, "LEVELS": (0.0, 1.0, 2.0)}
    for name, value in fewer.items():
        monkeypatch.setattr(scoring, name, value)
    monkeypatch.setattr(realism, "SUBSETS", 4)
    monkeypatch.setattr(fitting, "MAX_CALIBRATED", 6)


def check(case: Case, call, pool, folder) -> str:
    """Whether a case was refused or completed. Fails where it was neither."""
    run, words = folder / "run", write_photos(case, pool, folder)
    tiny = [word for word in TINY if not word.startswith("data.")]
    words += ["epochs=1", "batch_size=32", f"evaluate={str(case.evaluate).lower()}"]
    code, errors = call("train", f"hydra.run.dir={run}", *tiny, *words)
    if code:
        assert code in (2, 3), errors
        assert len(errors.splitlines()) == 1, errors
        assert errors.startswith("error: "), errors
        assert not run.exists()
        return "refused"
    assert runs.state(run)["status"] == "COMPLETED"
    text = report.report(EvaluateOptions(ckpt=str(run)))
    assert not re.search(r"\b(nan|inf|None)\b", text), text
    for path in run.rglob("*.json"):
        json.loads(path.read_text(), parse_constant=pytest.fail)  # NaN, Infinity
    if (run / "evaluation" / "best" / attributes.NAME).exists():
        path = runs.find(str(run))
        attributes.read(path, checkpoint.load(path).vae)
    return "completed"


@pytest.mark.parametrize("name", KNOWN)
def test_a_known_small_data_set_is_refused_or_completes(name, call, pool, tmp_path, quick):
    outcome = check(KNOWN[name], call, pool, tmp_path)
    assert outcome == ("refused" if name in REFUSED else "completed")


@slow
@pytest.mark.parametrize("seed", range(200))
def test_a_small_data_set_is_refused_or_completes(seed, call, pool, tmp_path, quick, request):
    request.node.user_properties.append(("outcome", check(drawn_case(seed), call, pool, tmp_path)))
