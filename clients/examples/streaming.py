"""Stream with a trace: each token as it is written, with its engine and the entropy it was drawn at."""

from waver.clients import Waver, ead, has_report, report, trace

client = Waver()
stream = client.chat.completions.create(
    model="small",
    messages=[{"role": "user", "content": "What is 34 + 25 - 17 + 64?"}],
    temperature=0,
    stream=True,
    extra_body={"policy": [ead(small="small", large="large")], "trace": True},
)
for chunk in stream:
    for choice in chunk.choices:
        for token in trace(choice):
            print(f"{token.token!r:>12}  {token.engine:<6} {token.entropy:6.3f} nats")
    if has_report(chunk):
        summary = report(chunk)
        print(f"{summary.tokens}, {summary.switches} switches, relative cost {summary.relative_cost:.2f}")
