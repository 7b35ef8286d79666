"""Make the project's virtual environment and install the project into it: `python3 tools/setup_env.py .venv [EXTRAS]`.

Needs nothing but a Python 3.10 or newer with `venv`. Safe to repeat.
"""
import os
import platform
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST, NEWEST = (3, 10), (3, 13)
CPU_WHEELS = "https://download.pytorch.org/whl/cpu"


def supported(version):
    return OLDEST <= tuple(version[:2]) <= NEWEST


def find_python():
    "This interpreter where the project supports it, otherwise the newest supported one on the PATH."
    if supported(sys.version_info):
        return sys.executable
    for minor in range(NEWEST[1], OLDEST[1] - 1, -1):
        if path := shutil.which(f"python3.{minor}"):
            return path
    oldest, newest = (".".join(map(str, version)) for version in (OLDEST, NEWEST))
    sys.exit(f"bgcs needs Python {oldest} to {newest}; this is {platform.python_version()} and no other was found on "
             "the PATH. Install one, or name it: make PYTHON=/path/to/python3 …")


def reachable(url):
    try:
        urllib.request.urlopen(urllib.request.Request(url + "/torch/", method="HEAD"), timeout=4)
        return True
    except Exception:
        return False


def torch_source():
    """Where to look for PyTorch: on Linux without an NVIDIA GPU its CPU wheels spare several GB.

    Where they can't be had, the default ones work too.
    """
    if platform.system() == "Linux" and not shutil.which("nvidia-smi") and reachable(CPU_WHEELS):
        return ["--extra-index-url", CPU_WHEELS]
    return []


def main(venv, extras=""):
    venv = Path(venv)
    python = venv / "bin" / "python"
    if venv.exists() and subprocess.run([python, "-m", "pip", "--version"], capture_output=True).returncode:
        print(f"{venv} is broken or half made: making it anew", flush=True)
        shutil.rmtree(venv)
    if not venv.exists():
        made = subprocess.run([find_python(), "-m", "venv", str(venv)])
        if made.returncode:
            shutil.rmtree(venv, ignore_errors=True)
            sys.exit("Python could not make a virtual environment (on Debian and Ubuntu: apt install python3-venv)")
    print(f"Installing bgcs and what it needs into {venv} (a few minutes the first time; PyTorch is large)", flush=True)
    target = f".[{extras}]" if extras else "."
    pip = [python, "-m", "pip", "install", "--quiet", "--progress-bar", "off", "--disable-pip-version-check"]
    command = [*pip, "-c", "constraints.txt", *torch_source(), "-e", target]
    quiet = os.environ | {"PIP_ROOT_USER_ACTION": "ignore"}
    sys.exit(subprocess.run(command, cwd=ROOT, env=quiet).returncode)


if __name__ == "__main__":
    main(*sys.argv[1:])
