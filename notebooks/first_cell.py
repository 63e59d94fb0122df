# Run this first. In Colab it fetches the course; where no trained models are, it trains them.
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

REPOSITORY, BRANCH, VERSION, PACKAGES = "", "", "", []  # generate.py writes them here


def fetch_course(place=Path("/content")):
    """Colab: a copy of the course at this notebook's branch, installed beside Colab's own torch."""
    import torch

    folder = place / REPOSITORY.rsplit("/", 1)[-1]
    pinned = place / "keep_torch.txt"
    pinned.write_text(f"torch=={torch.__version__}\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "install", "-q", "-c", str(pinned)]
    steps = [[*pip, "-e", str(folder), *PACKAGES]]
    if not (folder / "pyproject.toml").exists():
        shutil.rmtree(folder, ignore_errors=True)  # what an interrupted clone left
        clone = ["git", "clone", "-q", "--depth", "1", "-b", BRANCH, REPOSITORY, str(folder)]
        steps.insert(0, clone)
    for step in steps:
        done = subprocess.run(step, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(
                f"The course could not be fetched from {REPOSITORY}. Is there a network? "
                f"Then run this cell again. The command said: {done.stderr.strip()[-300:]}"
            ) from None
    sys.path.insert(0, str(folder))


def find_course():
    """Make sure that `course_lib` is there, in the version that this notebook was made for."""
    if "google.colab" in sys.modules and "course_lib" not in sys.modules:
        fetch_course()
    if importlib.util.find_spec("course_lib") is None:
        raise RuntimeError(
            "course_lib is not installed for this kernel. In a copy of the course run `make venv`, "
            f"and choose .venv as the kernel. A copy comes with: git clone -b {BRANCH} {REPOSITORY}"
        )
    import course_lib

    if course_lib.__version__ != VERSION:
        raise RuntimeError(
            f"This notebook was made for course_lib {VERSION}, but {course_lib.__version__} is "
            f"installed. Take both from the same place: {REPOSITORY}"
        )
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise RuntimeError(f"This lesson also uses: pip install {' '.join(missing)}")


def find_models():
    """Open the book's run, or that of the preset `$COURSE_PRESET`; train it if it is not there.

    Where nothing is trained and nothing is asked for, a GPU gets the larger preset `gpu`.
    """
    import torch

    from course_lib.errors import CourseError
    from course_lib.runs import open_run, runs_dir

    def trained():
        try:
            return open_run()
        except CourseError:
            return None

    if "COURSE_PRESET" not in os.environ and not trained() and torch.cuda.is_available():
        os.environ["COURSE_PRESET"] = "gpu"
    if run := trained():
        return run
    preset = os.environ.get("COURSE_PRESET", "laptop")
    print(f"No trained models yet: the preset {preset} is trained now, once, with a bar per stage.")
    if preset == "gpu":
        print("On a T4 we expect 10 to 15 minutes: computed from its operations, not measured.")
    train = [sys.executable, "-m", "course_lib", "train", "--preset", preset]
    train += ["--out", str(runs_dir() / preset)]
    with subprocess.Popen(train, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        try:
            while part := process.stdout.read1(4096):  # the progress bars
                print(part.decode("utf-8", "replace"), end="", flush=True)
        except KeyboardInterrupt:
            process.terminate()
            raise
    if process.returncode:
        raise RuntimeError("The training stopped. Run this cell again: it goes on where it was.")
    return open_run()


def text_tools():
    """`glue` keeps a measured value; `prose` shows a paragraph with the values that it names.

    A paragraph may name a value that is measured further down: it shows "…" until then.
    """
    import html

    from IPython.display import Markdown, display

    name = re.compile(r"\{\{ ([\w-]+) \}\}")
    sign = re.compile(r"[\\`*_{}\[\]|~$!]")
    values, waiting = {}, []

    def fill(text):
        def plain(match):  # a value is text, whatever signs it holds
            value = html.escape(str(values.get(match[1], "…")))
            return sign.sub(lambda found: f"&#{ord(found[0])};", value)

        return Markdown(name.sub(plain, text.strip()))

    def glue(key, value, display=False):
        values[key] = value
        for entry in [entry for entry in waiting if key in entry[2]]:
            handle, text, missing = entry
            handle.update(fill(text))
            missing.discard(key)
            if not missing:
                waiting.remove(entry)

    def prose(text):
        missing = set(name.findall(text)) - set(values)
        handle = display(fill(text), display_id=True)
        if missing:
            waiting.append((handle, text, missing))

    return glue, prose, waiting


find_course()
find_models()
glue, prose, waiting_paragraphs = text_tools()
