"""The running application: OpenAI-shaped embeddings, figure search, zero-shot classification and a page, on Ray Serve.

`app.py` builds it, `ingress.py` speaks HTTP, `replica.py` holds the model and the index, `inputs.py` guards what comes
in, `page/` is what a browser shows, `deploy.py` is the stage.
"""
