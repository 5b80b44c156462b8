"""smilevae page: a model as one file, whose decoder runs in a browser."""

import base64
import contextlib
import json
import re
import shutil
import time
import zlib

import numpy as np
import pytest
import torch
from conftest import slow
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch.nn import functional as F

import smilevae
from smilevae.apps import page
from smilevae.config import Settings
from smilevae.errors import ConfigError
from smilevae.models.vae import build_vae
from smilevae.runs import hub

SIDE = 32


def unpacked(index, text):
    """The matrices of `page.pack`."""
    content = zlib.decompress(base64.b64decode(text))
    num = sum(rows * columns for rows, columns, *_ in index.values())
    whole = np.frombuffer(content[: 2 * num], np.uint8).reshape(2, num).T.copy().view("<i2")[:, 0]
    scales = np.frombuffer(content[2 * num :], "<f4")
    return {
        name: whole[start : start + rows * columns].reshape(rows, columns)
        * scales[first : first + rows, None]
        for name, (rows, columns, start, first) in index.items()
    }


def test_packed_numbers_are_right_to_half_a_step_of_their_row():
    rng = np.random.default_rng(0)
    given = {
        "a": rng.normal(size=(5, 7)),
        "b": rng.normal(size=(1, 3)) * 1e4,
        "zero": np.zeros((2, 4)),
    }
    index, text = page.pack({name: torch.tensor(values) for name, values in given.items()})
    for name, values in unpacked(index, text).items():
        step = abs(given[name]).max(1, keepdims=True) / page.LEVELS
        assert (abs(values - given[name]) <= 0.501 * step + 1e-30).all()


def network(name, **other):
    torch.manual_seed(0)
    settings = Settings().with_values(
        {
            "image_size": SIDE,
            "latent_dim": 6,
            "model.network": name,
            "model.widths": [8, 16],
            **other,
        }
    )
    vae = build_vae(settings).train()
    with torch.no_grad():
        for _ in range(3):  # BatchNorm has met faces
            vae(torch.rand(16, *vae.shape))
        for parameter in vae.decoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return vae.eval()


def drawn(layers, z):
    """What the layers of a page say, by PyTorch's own: (B, D) -> (B, C, S, S)."""
    x = z
    for kind, weight, bias, relu in layers:
        if kind == "linear":
            x = x @ weight + bias
        else:
            kernel = 4 if kind == "up" else 3
            inputs = len(weight) // kernel**2
            if x.dim() == 2:
                side = round((x.shape[1] / inputs) ** 0.5)
                x = x.view(-1, side, side, inputs).movedim(-1, 1)
            w = weight.view(kernel, kernel, inputs, -1)
            if kind == "up":
                x = F.conv_transpose2d(x, w.permute(2, 3, 0, 1), bias, stride=2, padding=1)
            else:
                x = F.conv2d(x, w.permute(3, 2, 0, 1), bias, padding=1)
        x = x.relu() if relu else x
        if kind == "patches":
            b, _, h, w = x.shape
            x = x.view(b, 4, 4, -1, h, w).permute(0, 3, 4, 1, 5, 2).reshape(b, -1, 4 * h, 4 * w)
    return x


@pytest.mark.parametrize("other", [{}, {"normalize": True}, {"channels": 1}])
@pytest.mark.parametrize("name", ["conv", "patch"])
def test_the_layers_of_a_page_are_the_decoder(name, other):
    vae = network(name, **other)
    z = torch.randn(4, 6)
    with torch.no_grad():
        assert torch.allclose(drawn(page.browser_layers(vae, name), z), vae.decode(z), atol=1e-5)


def test_a_network_that_a_page_cannot_draw_is_one_sentence():
    with pytest.raises(ConfigError, match="a page cannot draw model=mine"):
        page.browser_layers(network("conv"), "mine")


def exported(tmp_path):
    """A copy of the model drawn, and its metrics."""
    shutil.copytree(hub.DRAWN, tmp_path / "model")
    return tmp_path / "model", json.loads((hub.DRAWN / "evaluation" / "metrics.json").read_text())


@pytest.mark.parametrize("command", ["page", "export"])
@pytest.mark.parametrize("values", [{"kl": None}, {"model": 3}, {"edits": {"smile": {}}}])
def test_damaged_metrics_are_one_sentence(call, tmp_path, command, values):
    pytest.importorskip("onnx")
    folder, metrics = exported(tmp_path)
    (folder / "evaluation" / "metrics.json").write_text(json.dumps(metrics | values))
    out = tmp_path / "out.html"
    code, errors = call(command, f"ckpt={folder}", f"out={out}")
    assert (code, errors.count("\n")) == (4, 1), errors
    assert "metrics.json of" in errors
    assert not out.exists()


@pytest.mark.parametrize("name", ["sampler.safetensors", "edits.safetensors"])
def test_numbers_of_another_type_are_read(call, tmp_path, name):
    folder, _ = exported(tmp_path)
    path = folder / "evaluation" / name
    with safe_open(path, "pt") as file:
        header = file.metadata()
    halved = {key: tensor.double() for key, tensor in load_file(path).items()}
    path.write_bytes(save(halved, header))
    code, errors = call("page", f"ckpt={folder}", f"out={tmp_path / 'face.html'}")
    assert code == 0, errors


def test_weights_that_are_not_finite_are_refused(call, tmp_path):
    folder, _ = exported(tmp_path)
    weights = load_file(folder / "model.safetensors")
    name = next(name for name, tensor in weights.items() if tensor.is_floating_point())
    weights[name] = weights[name] * np.nan
    (folder / "model.safetensors").write_bytes(save(weights))
    code, errors = call("page", f"ckpt={folder}", f"out={tmp_path / 'face.html'}")
    assert (code, errors.count("\n")) == (4, 1), errors
    assert "not finite" in errors


def test_a_page_holds_no_photo_and_no_address(call, evaluated_run, tmp_path):
    out = tmp_path / "face.html"
    code, errors = call("page", f"ckpt={evaluated_run}", f"out={out}")
    assert code == 0, errors
    text = out.read_text()
    assert out.stat().st_size < page.MOST_BYTES
    assert "data:image" not in text
    assert not re.findall(r"https?://|src=|@import|url\(", text)


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["out=face.png"], 2, "out=face.png is no page; name a file that ends in .html"),
        (["out=face.html", "attribute=nose"], 2, "attribute=nose cannot be edited"),
    ],
)
def test_mistakes_are_one_sentence(
    call, evaluated_run, tmp_path, monkeypatch, words, code, sentence
):
    monkeypatch.chdir(tmp_path)
    got, errors = call("page", f"ckpt={evaluated_run}", *words)
    assert (got, errors.count("\n")) == (code, 1), errors
    assert sentence in errors
    assert list(tmp_path.iterdir()) == []


def test_a_page_over_its_limit_is_refused(call, evaluated_run, tmp_path, monkeypatch):
    monkeypatch.setattr(page, "MOST_BYTES", 10_000)
    code, errors = call("page", f"ckpt={evaluated_run}", f"out={tmp_path / 'x.html'}")
    assert (code, errors.count("\n")) == (2, 1), errors
    assert "limit" in errors
    assert not (tmp_path / "x.html").exists()


@contextlib.contextmanager
def chrome(tmp_path, width, dark):
    """A browser of this width, and what it says of its page."""
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    for word in ("headless=new", "no-sandbox", f"user-data-dir={tmp_path / f'{width}{dark}'}"):
        options.add_argument(f"--{word}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        yield browser
    finally:
        browser.quit()


def until(browser, what):
    end = time.monotonic() + 20
    while not (found := browser.execute_script(f"return {what}")):
        assert time.monotonic() < end, (what, browser.get_log("browser"))
        time.sleep(0.05)
    return found


@slow
@pytest.mark.skipif(not shutil.which("chromedriver"), reason="needs Debian's chromium-driver")
@pytest.mark.parametrize(("width", "dark"), [(320, False), (400, True), (768, True), (1200, False)])
def test_a_real_browser_draws_what_torch_draws_and_asks_nobody(
    call, evaluated_run, tmp_path, width, dark
):
    from selenium.webdriver.common.keys import Keys

    out = tmp_path / "face.html"
    assert call("page", f"ckpt={evaluated_run}", f"out={out}")[0] == 0
    model = smilevae.load(evaluated_run)
    codes = model.draw(64, seed=3)
    with chrome(tmp_path, width, dark) as browser:
        browser.get(out.as_uri())
        until(browser, "document.body && document.body.dataset.ready")

        # Pictures and edits.
        wanted = model.decode(codes).movedim(1, -1).flatten(1).numpy()
        for code, image in zip(codes.tolist(), wanted):
            found = browser.execute_script("return Array.from(decode(arguments[0]))", code)
            assert abs(np.clip(found, 0, 1) - image).max() < 1 / 255
        main = model.edits.main
        moved = main.edit(codes[:1], torch.tensor([1.0]))[0, 0] - codes[0]
        found = browser.execute_script("return edited(arguments[0], 0, 1)", codes[0].tolist())
        assert abs(np.array(found) - moved.numpy()).max() < 0.01 * moved.abs().max()

        # By keyboard alone.
        face = "document.getElementById('face').toDataURL()"
        seen = {browser.execute_script(f"return {face}")}
        for selector, keys in (
            ("#edits input", Keys.ARROW_RIGHT * 5),
            ("#axes input", Keys.ARROW_LEFT * 9),
            ("#next", Keys.ENTER),
            ("#map", Keys.ENTER + Keys.ARROW_LEFT * 9 + Keys.ENTER),
            ("#along", Keys.ARROW_LEFT * 40),
        ):
            browser.find_element("css selector", selector).send_keys(keys)
            until(browser, f"!{json.dumps(sorted(seen))}.includes({face})")
            seen.add(browser.execute_script(f"return {face}"))
        assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")

        # Nobody is asked, and nothing is wrong.
        messages = [
            json.loads(entry["message"])["message"] for entry in browser.get_log("performance")
        ]
        urls = [
            m["params"]["request"]["url"]
            for m in messages
            if m["method"] == "Network.requestWillBeSent"
        ]
        assert {url for url in urls if not url.startswith(("chrome:", "data:"))} == {out.as_uri()}
        assert browser.get_log("browser") == []
