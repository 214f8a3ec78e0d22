"""Talking to vision-language models: on this machine through transformers, elsewhere through OpenAI's protocol.

Judges (``verifiers/vlm``) and rewriters (``rewriters``) stand on this room, and neither knows the other.

    conversation    what is said: turns, replies, and the ways in which an answer can fail
    endpoint        where a server is, and which key it may see
    transport       one HTTP request, over in the time that it was given
    client          a question to a server: retries, and less of the protocol where a server knows less
    local           a chat model of transformers in a folder of this machine
    loading         such a folder, without a line of its code being run
    reading         from what a model wrote to JSON, thoughts left out; time in proportion to its length
"""
