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
OURS = {"X_Smilevae": "1"}  # what the page sends with a picture
EVIL = {"Host": "127.0.0.1.evil.example"}
HALF = b"POST /photo HTTP/1.1\r\nHost: localhost\r\nX-Smilevae: 1\r\nContent-Length: 9\r\n\r\nabc"


@contextlib.contextmanager
def started(*words, path=ROOT, **options):
    """`smilevae WORDS` as a process, and its first line. Never leaves it behind."""
    command = [sys.executable, "-c", "from smilevae import cli; cli.main()", *map(str, words)]
    environment = os.environ | {"PYTHONPATH": str(path)} | options.pop("env", {})
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, env=environment, **streams, **options)
    try:
        yield process, process.stdout.readline()
    finally:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def app(run, **environment):
    """The app, once it says where it is: (process, port)."""
    with started("app", f"ckpt={run}", "port=0", env=environment) as (process, line):
        assert line.startswith("open http://127.0.0.1:"), process.communicate(timeout=10)
        yield process, int(line.split("127.0.0.1:")[1].split("/")[0])


@pytest.fixture(scope="module")
def port(evaluated_run):
    with app(evaluated_run) as (_, number):
        yield number


def ask(port, path, method="GET", body=None, **headers):
    """The status, headers and body of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    with contextlib.closing(connection):
        connection.request(method, path, body, named)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()


def picture(width=300, height=200, form="PNG"):
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, form)
    return file.getvalue()


def upload(port, data, path="/photo?middle"):
    status, headers, body = ask(port, path, "POST", data, **OURS)
    return status, headers["Content-Type"], json.loads(body) if status == 200 else body


def image(port, path, kind):
    status, headers, body = ask(port, path)
    assert (status, headers["Content-Type"]) == (200, kind)
    return np.asarray(Image.open(io.BytesIO(body)).convert("RGB")).astype(int)


def test_a_photograph_smiles_and_can_be_saved_whole(port):
    status, kind, opened = upload(port, picture(1200, 800))
    assert (status, kind) == (200, "application/json"), opened
    assert (opened["width"], opened["height"]) == (900, 600)
    path = f"/edit?id={opened['id']}&value="
    before, after = (image(port, f"{path}{value}", "image/jpeg") for value in (0, 2))
    assert before.shape == (600, 900, 3)
    assert np.abs(after - before)[150:450, 300:600].max() > 5
    assert image(port, f"{path}2&full=1", "image/png").shape == (800, 1200, 3)


def test_new_faces_are_their_seed_s_and_smile_too(port):
    paths = [f"/new?seed={seed}&value={value}" for seed in (1, 2) for value in (0, 2)]
    faces = [ask(port, path)[2] for path in paths]
    assert len(set(faces)) == 4
    assert faces[1] == ask(port, paths[1])[2]


def test_the_page_speaks_of_no_other_machine_and_tells_what_there_is(port):
    status, headers, body = ask(port, "/")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert b"//" not in body.replace(b"// ", b"").replace(b"<!doctype", b"")
    about = json.loads(ask(port, "/about")[2])
    assert about["attribute"] in about["ranges"]


@pytest.mark.parametrize(
    ("status", "words", "path", "headers", "body"),
    [
        (415, "not an image", "/photo", OURS, b"not a picture"),
        (413, "over the limit of 10 MB", "/photo", OURS, b"x" * 11_000_000),
        (413, "over the limit of 10 MB", "/photo", OURS, (b"x" * 10**6 for _ in range(11))),
        (415, "empty", "/photo", OURS, b""),
        (422, "no face was detected", "/photo", OURS, picture(form="JPEG")),
        (403, "from this page only", "/photo", {}, b"x"),
        (404, "Not Found", "/../../etc/passwd", OURS, b"x"),
        (404, "Not Found", "/../../../etc/passwd", {}, None),
        (405, "Method Not Allowed", "/photo", OURS, None),
        (410, "drop yours again", "/edit?id=../../etc/passwd", {}, None),
        (400, "a number from -10 to 10", "/new?value=nan", {}, None),
        (400, "a number from", "/new?seed=-9999999999", {}, None),
        (400, "attribute=hat cannot be edited; choose one of smile", "/new?a.hat=1", {}, None),
        (400, "a number from -10 to 10", "/new?a.smile=nan", {}, None),
        (400, "Invalid host", "/", {"Host": "evil.example"}, None),
        (400, "Invalid host", "/photo", OURS | EVIL, b"x"),
    ],
)
def test_every_mistake_and_every_attack_is_one_sentence(port, status, words, path, headers, body):
    answer = ask(port, path, "GET" if body is None else "POST", body, **headers)
    assert (answer[0], words in answer[2].decode()) == (status, True), answer
    assert answer[1]["Content-Type"].startswith("text/plain")
    assert b"Traceback" not in answer[2]


def test_too_many_pixels_are_told_before_they_cost_anything(port):
    file = io.BytesIO()
    Image.new("L", (6000, 5000)).save(file, "PNG")
    status, _, body = upload(port, file.getvalue())
    assert (status, b"6000x5000 pixels, over the limit of 25 million" in body) == (413, True)


def test_fifty_at_once_are_all_answered_and_only_the_last_pictures_are_kept(port):
    first = upload(port, picture())[2]["id"]
    paths = [f"/edit?id={first}&value={i / 25}" for i in range(50)]
    with ThreadPoolExecutor(50) as pool:
        moves = list(pool.map(lambda path: ask(port, path)[0], paths))
    assert moves == [200] * 50
    for _ in range(slider.KEPT):
        upload(port, picture())
    assert ask(port, f"/edit?id={first}")[0] == 410


def test_every_answer_forbids_caches_frames_and_other_sites(port):
    for path in ("/", "/nowhere", "/new"):
        for host in ("localhost", "evil.example"):
            headers = ask(port, path, Host=host)[1]
            assert headers["Server"] is None
            assert {name: headers[name] for name in slider.HEADERS} == slider.HEADERS


def test_half_requests_keep_nobody_waiting(port):
    with contextlib.ExitStack() as stack:
        for half in 60 * (b"GET / HT", HALF):
            stack.enter_context(socket.create_connection(("127.0.0.1", port))).sendall(half)
        assert ask(port, "/about")[0] == 200
        assert upload(port, picture())[0] == 200


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_it_is_on_loopback_alone_leaves_no_file_and_ends_on_a_signal_that_its_parent_ignores(
    evaluated_run, tmp_path, signum
):
    (tmp_path / "tmp").mkdir()
    before = {path: path.stat().st_mtime_ns for path in evaluated_run.rglob("*")}
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in a script's `make test &`
    places = {"TMPDIR": str(tmp_path / "tmp"), "HOME": str(tmp_path)}
    try:
        with app(evaluated_run, **places) as (process, port):
            opened = upload(port, picture())[2]
            assert ask(port, f"/edit?id={opened['id']}&value=1")[0] == 200
            addresses = socket.getaddrinfo(socket.gethostname(), port, socket.AF_INET)
            for outside in {address[4][0] for address in addresses}:
                if not outside.startswith("127."):
                    with pytest.raises(ConnectionError):
                        socket.create_connection((outside, port), timeout=2)
            with socket.create_connection(("127.0.0.1", port)) as half:
                half.sendall(HALF)
                process.send_signal(signum)
                errors = process.communicate(timeout=30)[1]
    finally:
        signal.signal(signal.SIGINT, handler)
    assert (process.returncode, errors) == (0 if signum == signal.SIGINT else -signum, "")
    assert not list((tmp_path / "tmp").iterdir())
    assert {path: path.stat().st_mtime_ns for path in evaluated_run.rglob("*")} == before


@pytest.mark.parametrize("words", ["app", "photo image=me.jpg out=out.png", "export out=given"])
def test_ctrl_c_while_torch_is_imported_is_one_word(tmp_path, words):
    slow = "import time; print('importing', flush=True); time.sleep(60)"
    (tmp_path / "torch.py").write_text(slow)
    options = {
        "path": f"{tmp_path}{os.pathsep}{ROOT}",
        "cwd": tmp_path,
        "preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    }
    with started(*words.split(), "ckpt=run", **options) as (process, line):
        assert line == "importing\n"
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=30)[1]
        assert (process.returncode, errors) == (130, "interrupted\n")


def test_wrong_words_are_one_sentence(call, evaluated_run, port):
    for words, problem in (
        ([], "ckpt is not set; smilevae app ckpt=RUN"),
        (["ckpt=run", "port=x"], "port=x must be a whole number from 0 to 65535"),
        (["ckpt=run", "share=true"], "share is not an option"),
        (
            [f"ckpt={evaluated_run}", f"port={port}"],
            f"port={port}: Address already in use; choose another",
        ),
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
    for word in ("headless=new", "no-sandbox", "window-size=500,900"):
        options.add_argument(f"--{word}")
    options.add_argument(f"--user-data-dir={tmp_path / 'profile'}")
    browser = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))

    def until(what):
        end = time.monotonic() + 20
        while not (found := browser.execute_script(f"return {what}")):
            assert time.monotonic() < end, what
            time.sleep(0.05)
        return found

    with contextlib.ExitStack() as stack:
        stack.callback(browser.quit)
        browser.get(f"http://127.0.0.1:{port}/")
        until("document.body.dataset.ready")
        shown = "document.getElementById('picture')"
        until(f"!{shown}.hidden && {shown}.alt.startsWith('New faces')")  # before any click
        browser.find_element("id", "file").send_keys(str(tmp_path / "me.png"))
        until("document.getElementById('say').textContent.includes('no face')")
        browser.find_element("id", "middle").click()
        first = until(f"{shown}.alt.startsWith('Your photograph') && {shown}.src")
        browser.find_element("id", "value").send_keys(Keys.ARROW_RIGHT * 5)  # by keyboard alone
        until(f"{shown}.src != '{first}'")
        assert until("document.getElementById('shown').value") == "0.5"
        assert until("document.documentElement.scrollWidth <= innerWidth")  # a phone's width
        browser.find_element("id", "before").click()
        assert browser.find_element("id", "before").text == "After"
        browser.find_element("id", "new").click()
        until(f"{shown}.alt.startsWith('New faces')")
        assert [e["message"] for e in browser.get_log("browser") if "422" not in e["message"]] == []
