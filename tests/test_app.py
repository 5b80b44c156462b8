import http.client
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from smilevae.apps import slider
from smilevae.errors import ConfigError

pytest.importorskip("cv2")


@pytest.fixture(scope="module")
def server(evaluated_run):
    server = slider.serve(str(evaluated_run), 0)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def ask(server, method, path, body=None, **headers):
    port = server.server_address[1]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"Host": f"127.0.0.1:{port}"} | {k.replace("_", "-"): v for k, v in headers.items()}
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    found = answer.status, answer.getheader("Content-Type"), answer.read()
    connection.close()
    return found


def picture(width=300, height=200, form="PNG"):
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, form)
    return file.getvalue()


def upload(server, data, path="/photo?middle"):
    return ask(server, "POST", path, data, X_Smilevae="1")


def test_a_photograph_smiles_and_can_be_saved_whole(server):
    status, kind, body = upload(server, picture(1200, 800))
    assert (status, kind) == (200, "application/json"), body
    opened = json.loads(body)
    assert (opened["width"], opened["height"]) == (900, 600)
    frames = {}
    for value in (0, 2):
        status, kind, body = ask(server, "GET", f"/smile?id={opened['id']}&value={value}")
        assert (status, kind) == (200, "image/jpeg")
        frames[value] = np.asarray(Image.open(io.BytesIO(body)).convert("RGB")).astype(int)
    assert frames[0].shape == (600, 900, 3)
    assert np.abs(frames[2] - frames[0])[150:450, 300:600].max() > 5
    status, kind, body = ask(server, "GET", f"/smile?id={opened['id']}&value=2&full=1")
    assert (status, kind) == (200, "image/png")
    assert Image.open(io.BytesIO(body)).size == (1200, 800)


def test_new_faces_are_their_seed_s_and_smile_too(server):
    found = {(seed, v): ask(server, "GET", f"/new?seed={seed}&value={v}")[2] for seed in (1, 2) for v in (0, 2)}
    assert len(set(found.values())) == 4
    assert found[1, 2] == ask(server, "GET", "/new?seed=1&value=2")[2]


def test_the_page_speaks_of_no_other_machine_and_tells_what_there_is(server):
    status, kind, body = ask(server, "GET", "/")
    assert (status, kind) == (200, "text/html; charset=utf-8")
    assert b"//" not in body.replace(b"// ", b"").replace(b"<!doctype", b"")
    about = json.loads(ask(server, "GET", "/about")[2])
    assert about["best"] in about["dials"]


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status", "words"),
    [
        ("POST", "/photo", b"not a picture", {"X_Smilevae": "1"}, 415, "not an image"),
        ("POST", "/photo", b"x" * 11_000_000, {"X_Smilevae": "1"}, 413, "over the limit of 10 MB"),
        ("POST", "/photo", None, {"X_Smilevae": "1"}, 415, "empty"),
        ("POST", "/photo", b"x", {}, 403, "from this page only"),
        ("POST", "/../../etc/passwd", b"x", {"X_Smilevae": "1"}, 403, "from this page only"),
        ("GET", "/../../../etc/passwd", None, {}, 404, "there is no"),
        ("GET", "/smile?id=../../etc/passwd", None, {}, 410, "drop yours again"),
        ("GET", "/new?value=nan", None, {}, 400, "a number from -10 to 10"),
        ("GET", "/new?seed=-9999999999", None, {}, 400, "a number from"),
        ("GET", "/new?direction=%3Cscript%3E", None, {}, 400, "no such direction"),
        ("GET", "/", None, {"Host": "evil.example"}, 403, "answers to 127.0.0.1 only"),
    ],
)
def test_every_mistake_and_every_attack_is_one_sentence(server, method, path, body, headers, status, words):
    found = ask(server, method, path, body, **headers)
    assert (found[0], words in found[2].decode()) == (status, True), found
    assert found[1].startswith("text/plain")
    assert b"Traceback" not in found[2]


def test_no_face_and_too_many_pixels_are_told_before_they_cost_anything(server):
    status, _, body = upload(server, picture(form="JPEG"), "/photo")
    assert (status, b"no face of 24 pixels" in body) == (422, True)
    file = io.BytesIO()
    Image.new("L", (6000, 5000)).save(file, "PNG")
    status, _, body = upload(server, file.getvalue())
    assert (status, b"6000x5000 pixels, over the limit of 25 million" in body) == (413, True)


def test_fifty_at_once_are_all_answered_and_only_the_last_pictures_are_kept(server):
    first = json.loads(upload(server, picture())[2])["id"]
    with ThreadPoolExecutor(50) as pool:
        moves = list(pool.map(lambda i: ask(server, "GET", f"/smile?id={first}&value={i / 25}")[0], range(50)))
    assert moves == [200] * 50
    for _ in range(slider.KEPT):
        upload(server, picture())
    assert ask(server, "GET", f"/smile?id={first}")[0] == 410


def test_it_listens_on_loopback_alone_and_leaves_nothing_on_the_disk(evaluated_run, tmp_path):
    environment = os.environ | {"TMPDIR": str(tmp_path / "tmp"), "HOME": str(tmp_path)}
    (tmp_path / "tmp").mkdir()
    command = [sys.executable, "-m", "smilevae.apps.slider", f"ckpt={evaluated_run}", "port=0"]
    before = {path: path.stat().st_mtime_ns for path in evaluated_run.rglob("*")}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment | {"PYTHONPATH": str(ROOT)})
    try:
        port = int(process.stdout.readline().split("127.0.0.1:")[1].split("/")[0])

        class Other:
            server_address = ("127.0.0.1", port)

        opened = json.loads(upload(Other, picture())[2])
        assert ask(Other, "GET", f"/smile?id={opened['id']}&value=1")[0] == 200
        outside = next((a[4][0] for a in socket.getaddrinfo(socket.gethostname(), port, socket.AF_INET)), "127.0.0.1")
        if not outside.startswith("127."):
            with pytest.raises(ConnectionError):
                socket.create_connection((outside, port), timeout=2)
    finally:
        process.send_signal(2)
        process.wait(10)
        process.stdout.close()
    assert process.returncode == 0
    assert not list((tmp_path / "tmp").iterdir())
    assert {path: path.stat().st_mtime_ns for path in evaluated_run.rglob("*")} == before


def test_wrong_words_are_one_sentence(evaluated_run, server):
    for words, problem in (
        ([], "takes these words"),
        ([f"ckpt={evaluated_run}", "port=x"], "port=x must be"),
        ([f"ckpt={evaluated_run}", f"port={server.server_address[1]}"], "choose another"),
        ([f"ckpt={evaluated_run}", "share=true"], "takes these words"),
    ):
        with pytest.raises(ConfigError, match=problem):
            slider.main(words)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromedriver"), reason="needs Debian's chromium-driver")
def test_in_a_real_browser_one_uploads_slides_compares_and_draws(server, tmp_path):
    webdriver = pytest.importorskip("selenium.webdriver")
    from selenium.webdriver.common.keys import Keys

    (tmp_path / "me.png").write_bytes(picture(400, 300))
    options = webdriver.ChromeOptions()
    for word in ("--headless=new", "--no-sandbox", "--window-size=500,900", f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(word)
    browser = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        browser.get(f"http://127.0.0.1:{server.server_address[1]}/")

        def until(what):
            end = time.monotonic() + 20
            while not (found := browser.execute_script(f"return {what}")):
                assert time.monotonic() < end, what
                time.sleep(0.05)
            return found

        until("document.body.dataset.ready")
        browser.find_element("id", "file").send_keys(str(tmp_path / "me.png"))
        until("document.getElementById('say').textContent.includes('no face')")
        browser.find_element("id", "middle").click()
        first = until("!document.getElementById('picture').hidden && document.getElementById('picture').src")
        browser.find_element("id", "value").send_keys(Keys.ARROW_RIGHT * 5)  # by keyboard alone
        until(f"document.getElementById('picture').src != '{first}'")
        assert until("document.getElementById('shown').value") == "0.5"
        assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")  # a phone's width
        browser.find_element("id", "before").click()
        assert browser.find_element("id", "before").text == "After"
        browser.find_element("id", "new").click()
        until("document.getElementById('picture').alt.startsWith('New faces')")
        assert [e["message"] for e in browser.get_log("browser") if "422" not in e["message"]] == []
        browser.save_screenshot(str(tmp_path / "app.png"))
    finally:
        browser.quit()
