"""Play 20 questions: think of an animal, and answer the server's questions with yes or no.

All state is in the messages, so that the game goes on when the server was restarted, or at another one. The task
`triage` works alike.
"""

from typing import Any

from waver.clients import Waver, report
from waver.clients.policies import c_ip

client = Waver()
policy = c_ip(task="animals", predictor="table")
messages: list[Any] = [{"role": "user", "content": "Hello."}]
while True:
    response = client.chat.completions.create(
        model="small", messages=messages, max_tokens=400, extra_body={"policy": [policy]}
    )
    said = response.choices[0].message.content
    asking = (report(response).model_extra or {})["asking"]
    print(said)
    if "outcome" in asking:  # what the user said of the guess
        break
    if "guess" in asking:
        print(f"  ({asking['asked']} questions; still possible: {', '.join(asking['set'])})")
    messages += [{"role": "assistant", "content": said}, {"role": "user", "content": input("> ")}]
