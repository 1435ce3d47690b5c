"""Bring documents, memories and facts to a server, find them again, and erase them."""

import openai

from waver.clients import Waver

with Waver() as client:
    client.collections.create("towns")
    client.collections.add(
        "towns",
        [
            {"id": "elness.md", "text": "The river of Elness is the Aure.", "metadata": {"kind": "town"}},
            {"id": "farmir.md", "text": "The mayor of Farmir is called Agnes."},
        ],
    )
    (passage,) = client.collections.search("towns", "Who is the mayor of Farmir?", top_k=1)
    print(f"{passage.document}: {passage.text}")
    client.collections.delete("towns")
    try:
        client.collections.get("towns")
    except openai.NotFoundError as error:
        print(f"{error.status_code}: {error.body['message'] if isinstance(error.body, dict) else error}")

    client.memories.add([{"content": "Ada's dog is called Rex."}], user="ada")
    (memory,) = client.memories.search("What is the dog called?", user="ada", top_k=1)
    print(memory.content)
    print(f"{client.memories.erase(user='ada').deleted} forgotten")

    (fact,) = client.facts.add([{"text": "The mayor of Farmir is Bruno.", "subject": "Farmir", "relation": "mayor"}])
    print(f"{len(client.facts.export())} fact: {fact.text}")
    client.facts.forget(fact.id)
