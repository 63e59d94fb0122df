"""The Hugging Face hub, played by a server of our own: broken connections, damage, refusals."""

import errno
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from course_lib.errors import CourseError
from course_lib.interop import from_pretrained, save_pretrained, tokenizer_from_pretrained
from course_lib.interop.hub import download

hub = pytest.importorskip("huggingface_hub")
constants = pytest.importorskip("huggingface_hub.constants")
COMMIT = "c" * 40


class Hub(ThreadingHTTPServer):
    """One repository, `ann/tiny`; every answer is one of the real hub's."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answers)
        self.files: dict[str, bytes] = {}
        self.sent: list[tuple[str, str | None]] = []  # file, range asked for
        self.break_after = {}  # file: bytes of its next answer, after which the connection ends
        self.damaged = set()
        self.refusal = None  # status, error code of every answer
        self.gated = False

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    def entries(self):
        """Name, size, git's id of each file, and the large-file store's checksum."""
        for name, data in self.files.items():
            git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            large = name.endswith(".safetensors")
            yield name, len(data), git, hashlib.sha256(data).hexdigest() if large else None


class Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer(with_body=False)

    def do_GET(self):
        self.answer(with_body=True)

    def answer(self, with_body):
        path = self.path.split("?")[0]
        if self.server.refusal:
            return self.send(*self.server.refusal)
        if match := re.fullmatch(r"/api/models/ann/tiny(/revision/[^/]+)?", path):
            return self.send(200, body=json.dumps(self.about()).encode())
        if re.fullmatch(r"/api/models/ann/tiny/tree/[^/]+", path):
            return self.send(200, body=json.dumps(self.tree()).encode())
        if match := re.fullmatch(r"/ann/tiny/resolve/[^/]+/(.+)", path):
            return self.send_file(match[1], with_body)
        return self.send(404, "RepoNotFound")

    def about(self):
        siblings = [
            {"rfilename": name, "size": size, "blobId": git}
            | ({"lfs": {"sha256": sha, "size": size, "pointerSize": 134}} if sha else {})
            for name, size, git, sha in self.server.entries()
        ]
        return {"id": "ann/tiny", "sha": COMMIT, "siblings": siblings}

    def tree(self):
        return [
            {"type": "file", "path": name, "size": size, "oid": git}
            | ({"lfs": {"oid": sha, "size": size, "pointerSize": 134}} if sha else {})
            for name, size, git, sha in self.server.entries()
        ]

    def send(self, status, code="", body=b"", **headers):
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def send_file(self, name, with_body):
        server = self.server
        if server.gated and "Authorization" not in self.headers:
            return self.send(401, "GatedRepo")
        data = server.files[name]
        git, sha = next((git, sha) for n, _, git, sha in server.entries() if n == name)
        begin = int((self.headers.get("Range") or "bytes=0-")[6:].split("-")[0])
        if name in server.damaged:
            data = data[:-1] + bytes([data[-1] ^ 1])
        self.send_response(206 if begin else 200)
        self.send_header("ETag", f'"{sha or git}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(data) - begin))
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if with_body:
            server.sent.append((name, self.headers.get("Range")))
            limit = server.break_after.pop(name, None)
            self.wfile.write(data[begin:][:limit])
            self.close_connection = limit is not None


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """The server, and `huggingface_hub` pointed at it with an empty cache and no token."""
    server = Hub()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        server.address + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between two tries
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    yield server
    server.shutdown()
    server.server_close()


def go_offline(monkeypatch):
    """From now on nobody answers."""
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")


@pytest.fixture
def tiny(fake, make_model, tiny_tokenizer, tmp_path):
    """A model in the repository."""
    model = make_model(tiny_tokenizer.vocab_size)
    save_pretrained(model, tmp_path / "export", tiny_tokenizer)
    fake.files = {p.name: p.read_bytes() for p in (tmp_path / "export").iterdir()}
    fake.files["pytorch_model.bin"] = b"pickled"
    return model


def bodies(fake):
    return [name for name, _ in fake.sent]


def leftovers(tmp_path):
    return [p.name for p in (tmp_path / "cache").rglob("*.incomplete")]


def test_a_model_is_fetched_once(fake, tiny, monkeypatch):
    model = from_pretrained("ann/tiny")
    idx = torch.arange(12)[None]
    with torch.no_grad():
        assert torch.equal(model(idx), tiny(idx))
    assert tokenizer_from_pretrained("ann/tiny").encode("a cat")
    assert sorted(bodies(fake)) == sorted(set(fake.files) - {"pytorch_model.bin"})
    go_offline(monkeypatch)
    assert download("ann/tiny").name == COMMIT
    assert from_pretrained("ann/tiny").n_parameters == model.n_parameters


def test_a_broken_connection_goes_on_where_it_was(fake, tiny):
    fake.break_after["model.safetensors"] = 5000
    folder = download("ann/tiny")
    whole = fake.files["model.safetensors"]
    assert (folder / "model.safetensors").read_bytes() == whole and len(whole) > 9000
    ranges = [asked for name, asked in fake.sent if name == "model.safetensors"]
    assert ranges == [None, "bytes=5000-"]


def test_a_connection_that_stays_broken(fake, tiny, tmp_path, monkeypatch):
    def always_short(key, default):
        return 0 if key == "model.safetensors" else default

    monkeypatch.setattr(fake, "break_after", type("Short", (), {"pop": staticmethod(always_short)}))
    with pytest.raises(CourseError, match=r"cannot download ann/tiny .*whole files are kept"):
        download("ann/tiny")
    assert leftovers(tmp_path) == []
    fake.break_after = {}
    before = len(fake.sent)
    download("ann/tiny")
    assert bodies(fake)[before:] == ["model.safetensors"]  # the others were whole


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_wrong_checksum(fake, tiny, tmp_path, name):
    fake.damaged.add(name)
    with pytest.raises(CourseError, match=rf"^{name} is not the file.*wrong checksum.*call again"):
        download("ann/tiny")
    left = {
        p.name for p in (tmp_path / "cache").rglob("*") if p.suffix in (".json", ".safetensors")
    }
    assert name not in left
    fake.damaged.clear()
    fake.sent.clear()
    assert (download("ann/tiny") / name).read_bytes() == fake.files[name]
    assert bodies(fake) == [name]


def test_damage_in_the_cache_is_found_later(fake, tiny):
    path = download("ann/tiny") / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.resolve().write_bytes(bytes(data))
    with pytest.raises(CourseError, match="wrong checksum"):
        from_pretrained("ann/tiny")
    assert from_pretrained("ann/tiny").n_parameters == tiny.n_parameters


def test_a_licence_to_accept_and_a_token(fake, tiny, monkeypatch):
    fake.gated = True
    with pytest.raises(CourseError, match=r"ann/tiny asks you to accept.*HF_TOKEN"):
        download("ann/tiny")
    monkeypatch.setenv("HF_TOKEN", "hf_abc")
    assert download("ann/tiny").name == COMMIT


@pytest.mark.parametrize(
    ("refusal", "message"),
    [
        ((404, "RepoNotFound"), "no such repository or revision"),
        ((401, "RepoNotFound"), "sign in with `hf auth login` if it is private"),
        ((404, "RevisionNotFound"), "no such repository or revision"),
        ((403, "GatedRepo"), "accept its licence"),
        ((500, ""), "cannot download ann/tiny .*500"),
    ],
)
def test_refusals(fake, refusal, message):
    fake.refusal = refusal
    with pytest.raises(CourseError, match=message):
        download("ann/tiny", "v1")


def test_no_connection(fake, monkeypatch):
    go_offline(monkeypatch)
    with pytest.raises(CourseError, match=r"cannot download ann/tiny \(.*refused.*connection"):
        from_pretrained("ann/tiny")
    with pytest.raises(CourseError, match="no checkpoint folder"):
        from_pretrained("../elsewhere/model")


def test_a_full_disk(fake, tiny, tmp_path, monkeypatch):
    def no_room(url, temp_file, **_):
        temp_file.write(b"part")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("huggingface_hub.file_download.http_get", no_room)
    with pytest.raises(CourseError, match=r"the disk is full.*HF_HOME"):
        download("ann/tiny")
    assert leftovers(tmp_path) == []


def test_a_repository_that_changes_meanwhile(fake, tiny, monkeypatch):
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: "/cache/" + "d" * 40)
    with pytest.raises(CourseError, match="changed while it was downloaded"):
        download("ann/tiny")
