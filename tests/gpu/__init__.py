"""What a GPU machine checks and measures in a few minutes: ``python -m tests.gpu``.

It needs torch, transformers and peft alone, and no network: neither pytest nor the packages of the
queue, the database and the web. With ``--tiny --device cpu`` the same runs in small, anywhere.
"""
