"""The Hugging Face Hub, up to the network's edge: the real library against a server of its paths."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import ROOT

pytest.importorskip("huggingface_hub")
pytest.importorskip("onnx")
COMMIT = "a" * 40


class Paths(BaseHTTPRequestHandler):
    """The paths that the library asks for; repositories are `server.repositories[name][file]`."""

    def log_message(self, *_):
        pass

    def answer(self, content, status=200, **headers):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self):
        first, *parts = self.path.partition("?")[0].strip("/").split("/")
        if first != "api":
            name, _resolve, _commit, *file = parts
            content = self.server.repositories[f"{first}/{name}"]["/".join(file)]
            digest = hashlib.sha1(content).hexdigest()
            self.answer(content, ETag=f'"{digest}"', X_Repo_Commit=COMMIT)
            return
        name = "/".join(parts[1:3])
        files = self.server.repositories.get(name)
        if parts[0] != "models" or files is None:
            self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        elif parts[3] == "tree":
            kinds = {"type": "file", "oid": COMMIT}
            self.answer([{"path": file, "size": len(c), **kinds} for file, c in files.items()])
        else:
            siblings = [{"rfilename": file} for file in files]
            self.answer({"id": name, "sha": COMMIT, "siblings": siblings})

    do_HEAD = do_GET

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        _, *parts = self.path.partition("?")[0].strip("/").split("/")
        if parts == ["repos", "create"]:
            given = json.loads(body)
            assert given.get("private") or given.get("visibility") == "private"
            name = f"{given['organization']}/{given['name']}"
            self.server.repositories.setdefault(name, {})
            self.answer({"url": f"http://{self.headers['Host']}/{name}", "id": name})
        elif parts == ["validate-yaml"]:
            self.answer({"errors": [], "warnings": []})
        elif parts[3] == "preupload":
            mode = {"uploadMode": "regular", "shouldIgnore": False}
            self.answer({"files": [file | mode for file in json.loads(body)["files"]]})
        else:
            lines = [json.loads(line) for line in body.splitlines()]
            files = {
                line["value"]["path"]: line["value"] for line in lines if line["key"] == "file"
            }
            name = "/".join(parts[1:3])
            repository = self.server.repositories[name]
            repository |= {path: base64.b64decode(file["content"]) for path, file in files.items()}
            url = f"http://{self.headers['Host']}/{name}/commit/{COMMIT}"
            self.answer({"success": True, "commitOid": COMMIT, "commitUrl": url})


@pytest.fixture
def hub(tmp_path):
    """A server, and smilevae as a process that knows no other."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Paths)
    server.repositories = {}
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def run(*words):
        cache = tmp_path / f"cache{len(list(tmp_path.iterdir()))}"  # a new one for each command
        cache.mkdir()
        environment = {
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "HF_HOME": str(cache),
            "HF_TOKEN": "hf_test",
            "PYTHONPATH": str(ROOT),
        }
        command = [sys.executable, "-m", "smilevae", *map(str, words)]
        return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)

    yield server, run
    server.shutdown()
    server.server_close()


def test_a_model_goes_to_the_hub_and_comes_back(hub, evaluated_run, tmp_path):
    server, run = hub
    done = run("export", f"ckpt={evaluated_run}", f"out={tmp_path / 'given'}", "hub=me/faces")
    assert done.returncode == 0, done.stderr
    assert "uploaded: hf-hub:me/faces; if it is new, only you see it" in done.stdout
    files = server.repositories["me/faces"]
    assert {"README.md", "model.json", "model.safetensors"} <= files.keys()
    done = run("page", "ckpt=hf-hub:me/faces", f"out={tmp_path / 'face.html'}")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "face.html").exists()

    # A file of the repository is read as a stranger's.
    hostile = b"cos\nsystem\n(S'echo hello'\ntR."
    for file, content in (("model.safetensors", b"x" * 99), ("model.json", hostile)):
        before = files[file]
        files[file] = content
        done = run("page", "ckpt=hf-hub:me/faces", f"out={tmp_path / 'other.html'}")
        assert done.returncode == 4, done.stderr
        assert "is not a smilevae checkpoint" in done.stderr.splitlines()[-1]
        files[file] = before

    # One without an evaluation is no export.
    del files["evaluation/metrics.json"]
    done = run("page", "ckpt=hf-hub:me/faces", f"out={tmp_path / 'other.html'}")
    assert (done.returncode, done.stderr.count("\n")) == (4, 1), done.stderr
    assert "hf-hub:me/faces has no evaluation/metrics.json" in done.stderr
    assert not (tmp_path / "other.html").exists()


def test_names_and_networks_that_are_not_there_are_one_sentence(hub, tmp_path):
    server, run = hub
    for name in ("me/nobody", "a b c"):
        done = run("page", f"ckpt=hf-hub:{name}", f"out={tmp_path / 'face.html'}")
        assert (done.returncode, done.stderr.count("\n")) == (4, 1), done.stderr
        assert "check the name and the network" in done.stderr
    done = run("export", "ckpt=drawn", f"out={tmp_path / 'given'}", "hub=a b/c")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert not (tmp_path / "given").exists()
    server.shutdown()
    server.server_close()
    done = run("page", "ckpt=hf-hub:me/faces", f"out={tmp_path / 'face.html'}")
    assert (done.returncode, done.stderr.count("\n")) == (4, 1), done.stderr
