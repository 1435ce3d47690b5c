"""The reward for Verilog, on a stub that stands for the simulator; with Icarus Verilog itself where it is installed."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from waver.training.tasks.rewards import no_testbench, passes_testbench
from waver.training.tasks.verilog import Limits, SimulatorMissing, VerilogTask, extract, forbidden, judge, rewards

DESIGN = "module inverter(input a, output y); assign y = ~a; endmodule"
REFERENCE = "module reference(input a, output y); assign y = ~a; endmodule"
TESTBENCH = (
    REFERENCE
    + """
module tb;
  reg a = 0; wire y, good; integer i, errors = 0;
  reference ref1(.a(a), .y(good));
  inverter dut(.a(a), .y(y));
  initial begin
    for (i = 0; i < 200; i = i + 1) begin a = i[0]; #1 if (y !== good) errors = errors + 1; end
    $display("Mismatches: %0d in %0d samples", errors, 200);
    $finish;
  end
endmodule
"""
)
TASK = VerilogTask(testbench=TESTBENCH, samples=200)
COMPILER = """#!/bin/sh
out=null
for word in "$@"; do [ "$word" = x.vvp ] && out=x.vvp; done
if [ $out = x.vvp ]; then grep -q wrong_ports design.sv && exit 1; cp design.sv x.vvp; exit 0; fi
grep -q syntax_error design.sv && exit 1
exit 0
"""
SIMULATOR = """#!/bin/sh
grep -q forever x.vvp && { sleep 60 & sleep 60; }
grep -q loud x.vvp && exec yes
grep -q silent x.vvp && exit 0
grep -q timed_out x.vvp && echo TIMEOUT
grep -q early x.vvp && { echo "Mismatches: 0 in 3 samples"; exit 0; }
grep -q half_wrong x.vvp && { echo "Mismatches: 150 in 200 samples"; exit 0; }
echo "Mismatches: 0 in 200 samples"
"""


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`iverilog` and `vvp` that go by words in the design."""
    for name, script in (("iverilog", COMPILER), ("vvp", SIMULATOR)):
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")


def design(mark: str) -> str:
    return DESIGN.replace("assign", f"wire {mark}; assign")


@pytest.mark.usefixtures("stub")
@pytest.mark.parametrize(
    ("response", "reward"),
    [
        ("I do not know.", 0.0),
        (design("syntax_error"), 0.0),
        (design("wrong_ports"), 0.1),
        (design("half_wrong"), 0.2),
        (DESIGN, 1.0),
        (design("silent"), 0.1),
        (design("timed_out"), 0.1),
        (design("early"), 0.1),
        (DESIGN.replace("assign", "initial $finish; assign"), 0.0),
    ],
)
def test_the_steps(response: str, reward: float) -> None:
    assert judge(response, TASK).reward == pytest.approx(reward)


@pytest.mark.usefixtures("stub")
def test_verdicts_say_how_far_it_came() -> None:
    found = judge(design("half_wrong"), TASK)
    assert (found.compiles, found.fits, found.right) == (True, True, 0.25)
    assert found.reason == "150 mismatches in 200 samples"
    assert not judge(design("wrong_ports"), TASK).fits


@pytest.mark.usefixtures("stub")
def test_what_does_not_end_is_ended() -> None:
    """With the child that it left behind: the wait is over long before the minute that both sleep."""
    start = time.monotonic()
    found = judge(design("forever"), TASK, Limits(run_seconds=0.5))
    assert found.reason == "no result"
    assert time.monotonic() - start < 20


@pytest.mark.usefixtures("stub")
def test_what_prints_without_end_is_cut() -> None:
    assert judge(design("loud"), TASK, Limits(file_mib=1)).reason == "no result"


@pytest.mark.usefixtures("stub")
def test_many_at_once_in_their_order() -> None:
    assert rewards([DESIGN, "no", design("half_wrong")] * 3, [TASK] * 9) == pytest.approx([1, 0, 0.2] * 3)
    assert judge(DESIGN * 9, TASK, Limits(design_characters=100)).reason == "too long a design"


@pytest.mark.usefixtures("stub")
def test_rows_say_by_which_testbench_they_are_judged() -> None:
    benches = [TESTBENCH, TESTBENCH, TESTBENCH]
    assert passes_testbench([DESIGN, "no", DESIGN], benches) == [1, 0, 1]
    assert passes_testbench([DESIGN] * 3, benches, top=[None] * 3, samples=[200, None, 3]) == [1, 1, 0.1]
    assert no_testbench({"testbench": TESTBENCH, "top": None}) is None
    assert no_testbench({}) == "`testbench`: Field required"
    assert "`samples`" in str(no_testbench({"testbench": TESTBENCH, "samples": "many"}))


def test_without_the_simulator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SimulatorMissing, match="apt-get install iverilog"):
        judge(DESIGN, TASK)


@pytest.mark.parametrize(
    ("response", "code"),
    [
        (f"First:\n```verilog\nmodule old; endmodule // too old\n```\nbetter:\n```verilog\n{DESIGN}\n```", DESIGN),
        (f"```SystemVerilog\n{DESIGN}\n```", DESIGN),
        (f"  {DESIGN}\n{REFERENCE}", f"{DESIGN}\n{REFERENCE}"),
        (f"Here it is: {DESIGN} and another {REFERENCE}", DESIGN),
        ("module m; endmodule", None),
        ("```verilog\nassign y = ~a; assign z = a;\n```", None),
        ("```verilog\n// module endmodule, to come\n```", None),
        ("", None),
    ],
)
def test_extraction(response: str, code: str | None) -> None:
    assert extract(response) == code


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ('initial $system("true");', "$system"),
        ('initial $fopen("x");', "$fopen"),
        ('initial $readmemh("/etc/passwd", m);', "$readmemh"),
        ('initial $display("Mismatches: 0 in 200 samples");', "$display"),
        ("initial $finish;", "$finish"),
        ('`include "reference.sv"', "`include"),
        ("`define S(x) $``x", "$"),
        ("`define S(x) a``x", "token pasting"),
        ("initial tb.errors = 0;", "a reference into tb"),
        ("initial tb . errors = 0;", "a reference into tb"),
        ("assign y = ref1.y;", "a reference into ref1"),
        ("initial force y = 1;", "force"),
        ("bind tb inverter i();", "bind"),
    ],
)
def test_what_is_forbidden(line: str, found: str) -> None:
    assert forbidden(DESIGN.replace("assign", f"{line} assign"), TESTBENCH) == found


@pytest.mark.parametrize(
    "line",
    [
        "// no $display here",
        "/* nor $finish */",
        "wire [$clog2(8)-1:0] w;",
        "sub s(.a(a), .y(y));",
        "localparam real r = 1.5;",
        "wire cost$display;",
        "assign z = packet.field;",
    ],
)
def test_what_is_not(line: str) -> None:
    assert forbidden(f"{line}\n{DESIGN}", TESTBENCH) is None


@pytest.mark.skipif(shutil.which("iverilog") is None, reason="Icarus Verilog is not installed")
@pytest.mark.parametrize(
    ("response", "reward"),
    [
        (DESIGN, 1.0),
        (DESIGN.replace("~a", "a"), 0.1),
        (DESIGN.replace("~a", "1'b1"), 0.3),
        (DESIGN.replace("~a", "~a +"), 0.0),
        (DESIGN.replace("output y", "output z").replace("y =", "z ="), 0.1),
        (DESIGN.replace("inverter", "other"), 0.1),
        (DESIGN.replace("assign", "initial forever begin end assign"), 0.1),
    ],
)
def test_icarus_verilog(response: str, reward: float) -> None:
    seconds = 3 if "forever" in response else 60  # the others end by themselves, however slow the machine
    assert judge(response, TASK, Limits(run_seconds=seconds)).reward == pytest.approx(reward)


def test_hostile_text_is_read_in_linear_time() -> None:
    began = time.process_time()
    for text in ("module " * 50_000, "/*" * 100_000, "a[" * 100_000, "a" * 200_000, "[" * 200_000):
        extract(text)
        forbidden(text, "dut")
    assert time.process_time() - began < 2


def test_references_into_the_testbench_behind_any_index() -> None:
    for design in ("dut.x", "dut[0].x", "dut[p[0]].x", "dut [ 0 ] [1] . x", "3dut.x", "dut/*[*/.x"):
        assert forbidden(design, "reg dut;") == "a reference into dut", design
    assert "nested" in (forbidden("a" + "[" * 40 + "0" + "]" * 40, "reg dut;") or "")
