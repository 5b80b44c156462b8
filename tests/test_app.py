"""The slider: a real process, real HTTP."""

import contextlib
import http.client
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from smilevae.apps import slider

pytest.importorskip("cv2")
COMMAND = [sys.executable, "-c", "from smilevae import cli; cli.main()"]


@contextlib.contextmanager
def app(run, **environment):
    """The app as a process, once it says where it is: (process, port). Never leaves it behind."""
    process = subprocess.Popen(
        [*COMMAND, "app", f"ckpt={run}", "port=0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
    )
    try:
        line = process.stdout.readline()
        assert line.startswith("open http://127.0.0.1:"), process.communicate(timeout=10)
        yield process, int(line.split("127.0.0.1:")[1].split("/")[0])
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def port(evaluated_run):
    with app(evaluated_run) as (_, number):
        yield number


def ask(port, method, path, body=None, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(
        method, path, body, {name.replace("_", "-"): value for name, value in headers.items()}
    )
    answer = connection.getresponse()
    content = answer.status, answer.getheader("Content-Type"), answer.read()
    connection.close()
    return content


def picture(width=300, height=200, form="PNG"):
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, form)
    return file.getvalue()


def upload(port, data, path="/photo?middle"):
    return ask(port, "POST", path, data, X_Smilevae="1")


def test_a_photograph_smiles_and_can_be_saved_whole(port):
    status, kind, body = upload(port, picture(1200, 800))
    assert (status, kind) == (200, "application/json"), body
    opened = json.loads(body)
    assert (opened["width"], opened["height"]) == (900, 600)
    frames = {}
    for value in (0, 2):
        status, kind, body = ask(port, "GET", f"/edit?id={opened['id']}&value={value}")
        assert (status, kind) == (200, "image/jpeg")
        frames[value] = np.asarray(Image.open(io.BytesIO(body)).convert("RGB")).astype(int)
    assert frames[0].shape == (600, 900, 3)
    assert np.abs(frames[2] - frames[0])[150:450, 300:600].max() > 5
    status, kind, body = ask(port, "GET", f"/edit?id={opened['id']}&value=2&full=1")
    assert (status, kind) == (200, "image/png")
    assert Image.open(io.BytesIO(body)).size == (1200, 800)


def test_new_faces_are_their_seed_s_and_smile_too(port):
    found = {
        (seed, v): ask(port, "GET", f"/new?seed={seed}&value={v}")[2]
        for seed in (1, 2)
        for v in (0, 2)
    }
    assert len(set(found.values())) == 4
    assert found[1, 2] == ask(port, "GET", "/new?seed=1&value=2")[2]


def test_the_page_speaks_of_no_other_machine_and_tells_what_there_is(port):
    status, kind, body = ask(port, "GET", "/")
    assert (status, kind) == (200, "text/html; charset=utf-8")
    assert b"//" not in body.replace(b"// ", b"").replace(b"<!doctype", b"")
    about = json.loads(ask(port, "GET", "/about")[2])
    assert about["attribute"] in about["ranges"]


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status", "words"),
    [
        ("POST", "/photo", b"not a picture", {"X_Smilevae": "1"}, 415, "not an image"),
        ("POST", "/photo", b"x" * 11_000_000, {"X_Smilevae": "1"}, 413, "over the limit of 10 MB"),
        (
            "POST",
            "/photo",
            (b"x" * 1_000_000 for _ in range(11)),
            {"X_Smilevae": "1"},
            413,
            "over the limit of 10 MB",
        ),
        ("POST", "/photo", None, {"X_Smilevae": "1"}, 415, "empty"),
        ("POST", "/photo", b"x", {}, 403, "from this page only"),
        ("POST", "/../../etc/passwd", b"x", {"X_Smilevae": "1"}, 403, "from this page only"),
        ("GET", "/../../../etc/passwd", None, {}, 404, "there is no"),
        ("GET", "/edit?id=../../etc/passwd", None, {}, 410, "drop yours again"),
        ("GET", "/new?value=nan", None, {}, 400, "a number from -10 to 10"),
        ("GET", "/new?seed=-9999999999", None, {}, 400, "a number from"),
        ("GET", "/new?a.hat=1", None, {}, 400, "no such attribute"),
        ("GET", "/new?a.smile=nan", None, {}, 400, "a number from -10 to 10"),
        ("GET", "/photo", None, {"X_Smilevae": "1"}, 404, "there is no"),
        ("GET", "/", None, {"Host": "evil.example"}, 400, "Invalid host"),
        (
            "POST",
            "/photo",
            b"x",
            {"X_Smilevae": "1", "Host": "127.0.0.1.evil.example"},
            400,
            "Invalid host",
        ),
    ],
)
def test_every_mistake_and_every_attack_is_one_sentence(
    port, method, path, body, headers, status, words
):
    found = ask(port, method, path, body, **headers)
    assert (found[0], words in found[2].decode()) == (status, True), found
    assert found[1].startswith("text/plain")
    assert b"Traceback" not in found[2]


def test_no_face_and_too_many_pixels_are_told_before_they_cost_anything(port):
    status, _, body = upload(port, picture(form="JPEG"), "/photo")
    assert (status, b"no face was detected" in body) == (422, True)
    file = io.BytesIO()
    Image.new("L", (6000, 5000)).save(file, "PNG")
    status, _, body = upload(port, file.getvalue())
    assert (status, b"6000x5000 pixels, over the limit of 25 million" in body) == (413, True)


def test_fifty_at_once_are_all_answered_and_only_the_last_pictures_are_kept(port):
    first = json.loads(upload(port, picture())[2])["id"]
    with ThreadPoolExecutor(50) as pool:
        moves = list(
            pool.map(lambda i: ask(port, "GET", f"/edit?id={first}&value={i / 25}")[0], range(50))
        )
    assert moves == [200] * 50
    for _ in range(slider.KEPT):
        upload(port, picture())
    assert ask(port, "GET", f"/edit?id={first}")[0] == 410


def test_every_answer_forbids_caches_frames_and_other_sites(port):
    for path, host in (
        ("/", "localhost"),
        ("/nowhere", "localhost"),
        ("/new", "localhost"),
        ("/", "evil.example"),
    ):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("GET", path, headers={"Host": host})
        answer = connection.getresponse()
        assert answer.getheader("Server") is None
        for name, value in slider.HEADERS.items():
            assert answer.getheader(name) == value, (path, name)
        connection.close()


def test_half_requests_keep_nobody_waiting(port):
    halves = (
        b"GET / HT",
        b"POST /photo HTTP/1.1\r\nHost: localhost\r\nX-Smilevae: 1\r\nContent-Length: 100\r\n\r\nabc",
    )
    with contextlib.ExitStack() as stack:
        for half in 60 * halves:
            stack.enter_context(socket.create_connection(("127.0.0.1", port))).sendall(half)
        assert ask(port, "GET", "/about")[0] == 200
        assert upload(port, picture())[0] == 200


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_it_is_on_loopback_alone_leaves_no_file_and_ends_on_a_signal_that_its_parent_ignores(
    evaluated_run, tmp_path, signum
):
    (tmp_path / "tmp").mkdir()
    before = {path: path.stat().st_mtime_ns for path in evaluated_run.rglob("*")}
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in a script's `make test &`
    try:
        with app(evaluated_run, TMPDIR=str(tmp_path / "tmp"), HOME=str(tmp_path)) as (
            process,
            port,
        ):
            opened = json.loads(upload(port, picture())[2])
            assert ask(port, "GET", f"/edit?id={opened['id']}&value=1")[0] == 200
            addresses = socket.getaddrinfo(socket.gethostname(), port, socket.AF_INET)
            for outside in {address[4][0] for address in addresses}:
                if not outside.startswith("127."):
                    with pytest.raises(ConnectionError):
                        socket.create_connection((outside, port), timeout=2)
            half = socket.create_connection(("127.0.0.1", port))
            half.sendall(
                b"POST /photo HTTP/1.1\r\nHost: localhost\r\nX-Smilevae: 1\r\nContent-Length: 9\r\n\r\nabc"
            )
            process.send_signal(signum)
            errors = process.communicate(timeout=30)[1]
            half.close()
    finally:
        signal.signal(signal.SIGINT, handler)
    assert (process.returncode, errors) == (0 if signum == signal.SIGINT else -signum, "")
    assert not list((tmp_path / "tmp").iterdir())
    assert {path: path.stat().st_mtime_ns for path in evaluated_run.rglob("*")} == before


@pytest.mark.parametrize(
    "words", [["app"], ["photo", "image=me.jpg", "out=out.png"], ["export", "out=given"]], ids=str
)
def test_ctrl_c_while_torch_is_imported_is_one_word(evaluated_run, tmp_path, words):
    (tmp_path / "torch.py").write_text(
        "import time; print('importing', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [*COMMAND, *words, f"ckpt={evaluated_run}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        assert process.stdout.readline() == "importing\n"
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=30)[1]
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, errors) == (130, "interrupted\n")


def test_wrong_words_are_one_sentence(call, evaluated_run, port):
    for words, problem in (
        ([], "ckpt is not set; smilevae app ckpt=RUN"),
        ([f"ckpt={evaluated_run}", "port=x"], "port=x must be a whole number from 0 to 65535"),
        (
            [f"ckpt={evaluated_run}", f"port={port}"],
            f"port={port}: Address already in use; choose another",
        ),
        ([f"ckpt={evaluated_run}", "share=true"], "share is not an option"),
    ):
        code, errors = call("app", *words)
        assert (code, errors.count("\n"), problem in errors) == (2, 1, True), errors


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromedriver"), reason="needs Debian's chromium-driver")
def test_in_a_real_browser_one_uploads_slides_compares_and_draws(port, tmp_path):
    webdriver = pytest.importorskip("selenium.webdriver")
    from selenium.webdriver.common.keys import Keys

    (tmp_path / "me.png").write_bytes(picture(400, 300))
    options = webdriver.ChromeOptions()
    for word in (
        "--headless=new",
        "--no-sandbox",
        "--window-size=500,900",
        f"--user-data-dir={tmp_path / 'profile'}",
    ):
        options.add_argument(word)
    browser = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        browser.get(f"http://127.0.0.1:{port}/")

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
        first = until(
            "!document.getElementById('picture').hidden && document.getElementById('picture').src"
        )
        browser.find_element("id", "value").send_keys(Keys.ARROW_RIGHT * 5)  # by keyboard alone
        until(f"document.getElementById('picture').src != '{first}'")
        assert until("document.getElementById('shown').value") == "0.5"
        assert browser.execute_script(
            "return document.documentElement.scrollWidth <= innerWidth"
        )  # a phone's width
        browser.find_element("id", "before").click()
        assert browser.find_element("id", "before").text == "After"
        browser.find_element("id", "new").click()
        until("document.getElementById('picture').alt.startsWith('New faces')")
        assert [e["message"] for e in browser.get_log("browser") if "422" not in e["message"]] == []
        browser.save_screenshot(str(tmp_path / "app.png"))
    finally:
        browser.quit()
