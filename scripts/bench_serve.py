"""How fast the web application answers: the first page after its start, a feature, filtered tables of many features, searches.

The server runs as a process of its own. Each page is asked for several times over HTTP; reported are the first answer, the median
and the slowest of the others, and the mean CPU time of the server for one of them, which other programs on the machine disturb
least. Without a workspace, the database is synthetic.

Example:
    python -m scripts.bench_serve --features 65536
    python -m scripts.bench_serve pythia
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from saekit.cli.output import table
from saekit.workspace.study import FILE, Study
from scripts.synthetic_database import SITE, make

REPEATS = 15
_PATIENCE = 60.0


def measure(folder: Path, dictionary: str, feature: int, *, model: bool = False) -> list[dict[str, Any]]:
    """Milliseconds of each page of a workspace; with `model`, also of the first token of a text."""
    command = [sys.executable, "-m", "saekit", "serve", str(folder), "--no-open", "--port", "0", "--json"]
    # An installed package has its bytecode; so has this process's child, once it has been started.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run([sys.executable, "-c", "import saekit.serve.app, saekit.serve.server, uvicorn"], env=environment, check=True)
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        try:
            assert server.stdout is not None
            text = ""
            while not text.endswith("\n}\n"):
                text += server.stdout.readline()
            said = json.loads(text)
            base = f"{said['url']}w/{next(iter(said['workspaces']))}"
            _get(base)
            first = 1000 * (time.perf_counter() - started)
            rows: list[dict[str, Any]] = [{"page": "start to the first page", "first": first, "cpu": _cpu(server.pid)}]
            rows += [{"page": name, **_times(base + path, server.pid)} for name, path in _pages(dictionary, feature).items()]
            if model:
                rows.append({"page": "first token of a stream", **_streamed(said["url"], server.pid)})
            return rows
        finally:
            server.terminate()


def _pages(dictionary: str, feature: int) -> dict[str, str]:
    table_of = f"/features?dictionary={dictionary}"
    return {
        "workspace": "",
        "feature": f"/feature:{dictionary}/{feature}",
        "feature as JSON": f"/feature:{dictionary}/{feature}.json",
        "table": table_of,
        "table, density": f"{table_of}&density_min=0.0001&density_max=0.01&sort=max",
        "table, output score": f"{table_of}&output_score_min=0.1&kind=word&sort=output_score",
        "table, label source": f"{table_of}&source=words&sort=label&down=0",
        "table, condition": f"{table_of}&where=label+like+%27%25a%25%27",
        "scatter": f"/scatter?dictionary={dictionary}&y=max",
        "map": f"/map?dictionary={dictionary}",
        "search": "/search?q=music",
        "like": f"/search?q={feature}&mode=like&dictionary={dictionary}",
    }


def _times(address: str, process: int) -> dict[str, float]:
    taken, used = [], 0.0
    for number in range(REPEATS + 1):
        used = _cpu(process) if number == 1 else used
        started = time.perf_counter()
        _get(address)
        taken.append(1000 * (time.perf_counter() - started))
    cpu = (_cpu(process) - used) / REPEATS
    return {"first": taken[0], "median": statistics.median(taken[1:]), "slowest": max(taken[1:]), "cpu": cpu}


def _streamed(url: str, process: int) -> dict[str, float]:
    """Until the first token of a streamed completion; the first time with the loading of the model."""
    with urllib.request.urlopen(f"{url}v1/models", timeout=_PATIENCE) as answer:
        name = json.loads(answer.read())["data"][0]["id"]
    body = json.dumps({"model": name, "prompt": "Once upon a time", "max_tokens": 16, "stream": True}).encode()
    taken, used = [], 0.0
    for number in range(REPEATS + 1):
        used = _cpu(process) if number == 1 else used
        request = urllib.request.Request(f"{url}v1/completions", body, {"Content-Type": "application/json"})
        started = time.perf_counter()
        with urllib.request.urlopen(request, timeout=_PATIENCE) as answer:
            while not answer.readline().startswith(b"data:"):
                pass
            taken.append(1000 * (time.perf_counter() - started))
            answer.read()
    cpu = (_cpu(process) - used) / REPEATS
    return {"first": taken[0], "median": statistics.median(taken[1:]), "slowest": max(taken[1:]), "cpu": cpu}


def _cpu(process: int) -> float:
    """Milliseconds of CPU time that a process has used."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return 1000 * (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _get(address: str) -> bytes:
    request = urllib.request.Request(address, headers={"Accept": "text/html"})
    with urllib.request.urlopen(request, timeout=_PATIENCE) as answer:
        return bytes(answer.read())


def _synthetic(folder: Path, n: int) -> Path:
    """A workspace with a synthetic database of n features."""
    if not (folder / "features.sqlite").exists():
        make(folder, n)
        Study(model="none", sites=[SITE], data="none").save(folder)
    assert (folder / FILE).exists()
    return folder


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workspace", type=Path, nargs="?")
    parser.add_argument("--features", type=int, default=65536, help="size of the synthetic database")
    parser.add_argument("--dictionary", default=SITE)
    parser.add_argument("--feature", type=int, default=1000)
    parser.add_argument("--folder", type=Path, help="where to keep the synthetic database")
    options = parser.parse_args()
    if options.workspace is not None:
        rows = measure(options.workspace, options.dictionary, options.feature, model=True)
    else:
        with tempfile.TemporaryDirectory() as temporary:
            folder = _synthetic(options.folder or Path(temporary) / "synthetic", options.features)
            rows = measure(folder, options.dictionary, options.feature)
    columns = ("first", "median", "slowest", "cpu")
    table([{"page": row["page"], **{name: f"{row[name]:.0f} ms" if name in row else "" for name in columns}} for row in rows])


if __name__ == "__main__":
    main()
