#!/bin/sh
# One answer over plain HTTP. A server elsewhere: WAVER_BASE_URL=http://host:8000/v1 sh clients/examples/curl.sh
curl --silent --show-error --fail-with-body "${WAVER_BASE_URL:-http://127.0.0.1:8000/v1}/chat/completions" \
  --header "Content-Type: application/json" \
  --header "Authorization: Bearer ${WAVER_API_KEY:-none}" \
  --data '{
    "model": "small",
    "messages": [{"role": "user", "content": "What is 34 + 25 - 17?"}],
    "temperature": 0,
    "policy": [{"name": "ead", "small": "small", "large": "large"}]
  }'
