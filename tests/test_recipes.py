"""What a recipe promises, on its real configuration: minutes each."""

import json
import subprocess
import sys

from conftest import ROOT, slow


@slow
def test_the_first_result_is_ahead_of_pca_and_its_smile_is_seen(tmp_path):
    run = tmp_path / "run"
    words = ["experiment=quickstart", f"hydra.run.dir={run}"]
    subprocess.run([sys.executable, ROOT / "train.py", *words], check=True, cwd=tmp_path)
    metrics = json.loads((run / "evaluation" / "best" / "metrics.json").read_text())
    assert metrics["model"]["psnr"] > metrics["pca"]["psnr"] + 2
    assert metrics["model"]["ssim"] > metrics["pca"]["ssim"] + 0.03
    smile = metrics["edits"]["smile"]
    one = smile["intensities"].index(1.0)
    assert smile["success"][one] > 0.9
    assert smile["success_landmarks"][one] > smile["success_landmarks"][0] + 0.2
