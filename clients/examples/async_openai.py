"""Send several questions at once, each under its own policy. The server decodes them together."""

import asyncio
from typing import Any

from waver.clients import AsyncWaver, ead, random_switch, report, route

POLICIES: dict[str, list[dict[str, Any]]] = {
    "small alone": [],
    "ead": [ead(small="small", large="large")],
    "random_switch": [random_switch(small="small", large="large", rate=0.3)],
    "route": [route(small="small", large="large")],
}


async def main() -> None:
    async with AsyncWaver() as client:
        responses = await asyncio.gather(
            *(
                client.chat.completions.create(
                    model="small",
                    messages=[{"role": "user", "content": "What is 34 + 25 - 17 + 64 - 28?"}],
                    temperature=0,
                    extra_body={"policy": policy},
                )
                for policy in POLICIES.values()
            )
        )
    for name, response in zip(POLICIES, responses, strict=True):
        answer = response.choices[0].message.content
        print(f"{name:>14}: {answer}  (relative cost {report(response).relative_cost:.2f})")


asyncio.run(main())
