# /// script
# requires-python = ">=3.11"
# dependencies = ["guidellm==0.8.1"]
# tool.uv.exclude-newer = "2026-11-28T00:00:00Z"
# ///
"""guidellm: a short load of synthetic prompts."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path

from harness import MODEL, ROOT, check, run


@check
def load() -> str:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "report.json"
        data = Path(folder) / "prompts.jsonl"
        data.write_text("".join(json.dumps({"prompt": f"Count to {n}."}) + "\n" for n in range(2, 6)))
        command = ["guidellm", "run", "--disable-console", "--backend", f"kind=openai_http,target={ROOT},model={MODEL}"]
        command += ["--profile", "kind=synchronous", "--constraint", "kind=max_requests,count=3"]
        command += ["--data", f"kind=json_file,path={data}", "--output", f"kind=json,path={out}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, done.stderr[-300:] or done.stdout[-300:]
        (only,) = json.loads(out.read_text())["benchmarks"]
        totals = only["metrics"]["request_totals"]
        assert (totals["successful"], totals["errored"]) == (3, 0), totals
        return f"{totals['successful']} requests"


if __name__ == "__main__":
    run()
