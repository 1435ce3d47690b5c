"""Use the official `openai` package alone: a policy goes out in `extra_body`, the report comes back in
`model_extra`."""

import os

from openai import OpenAI

client = OpenAI(
    base_url=os.environ.get("WAVER_BASE_URL", "http://127.0.0.1:8000/v1"),
    api_key=os.environ.get("WAVER_API_KEY", "none"),
)
response = client.chat.completions.create(
    model="small",
    messages=[{"role": "user", "content": "What is 34 + 25 - 17?"}],
    temperature=0,
    extra_body={"policy": [{"name": "ead", "small": "small", "large": "large", "threshold": 0.3}]},
)
print(response.choices[0].message.content)
print((response.model_extra or {})["waver"])
