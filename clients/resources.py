"""Group the requests of Waver's own endpoints into the resources of a client, blocking and async."""

from __future__ import annotations

from waver.clients import calls
from waver.clients.calls import Resource, awaited, blocking


class Collections(Resource):
    """Collections of documents: `client.collections`."""

    create = blocking(calls.create_collection)
    list = blocking(calls.list_collections)
    get = blocking(calls.get_collection)
    delete = blocking(calls.delete_collection)
    add = blocking(calls.add_documents)
    upload = blocking(calls.upload_files)
    documents = blocking(calls.list_documents)
    remove = blocking(calls.remove_document)
    search = blocking(calls.search_collection)


class Memories(Resource):
    """Memories of the key and of a `user`: `client.memories`."""

    add = blocking(calls.add_memories)
    say = blocking(calls.say_turns)
    search = blocking(calls.search_memories)
    export = blocking(calls.export_memories)
    get = blocking(calls.get_memory)
    forget = blocking(calls.forget_memory)
    erase = blocking(calls.erase_memories)


class Facts(Resource):
    """Facts that correct a model, of the key and of a `user`: `client.facts`."""

    add = blocking(calls.add_facts)
    export = blocking(calls.export_facts)
    forget = blocking(calls.forget_fact)
    erase = blocking(calls.erase_facts)


class AsyncCollections(Resource):
    """Collections of documents: `client.collections`, awaited."""

    create = awaited(calls.create_collection)
    list = awaited(calls.list_collections)
    get = awaited(calls.get_collection)
    delete = awaited(calls.delete_collection)
    add = awaited(calls.add_documents)
    upload = awaited(calls.upload_files)
    documents = awaited(calls.list_documents)
    remove = awaited(calls.remove_document)
    search = awaited(calls.search_collection)


class AsyncMemories(Resource):
    """Memories of the key and of a `user`: `client.memories`, awaited."""

    add = awaited(calls.add_memories)
    say = awaited(calls.say_turns)
    search = awaited(calls.search_memories)
    export = awaited(calls.export_memories)
    get = awaited(calls.get_memory)
    forget = awaited(calls.forget_memory)
    erase = awaited(calls.erase_memories)


class AsyncFacts(Resource):
    """Facts that correct a model, of the key and of a `user`: `client.facts`, awaited."""

    add = awaited(calls.add_facts)
    export = awaited(calls.export_facts)
    forget = awaited(calls.forget_fact)
    erase = awaited(calls.erase_facts)
