"""The running application: OpenAI-shaped embeddings, figure search, zero-shot classification, a tool for agents and a
page.

`schemas.py` is every request and answer (`input_shapes.py`: what their inputs look like). A request meets `observe.py`
(id, log, numbers), `cors.py` (pages of other origins), `access.py` (hosts, keys, quotas) and `limits.py` (bytes, depth,
time) before a route of `ingress.py`; `inputs.py` reads what it holds, `fetch.py` gets what lies elsewhere, and
`backend.py` asks the engine. `replica.py` is the engine: model and index, in batches (`batching.py`); `reading.py`
turns a search's parts into the search room's. `app.py` puts both on Ray Serve, with `pulse.py` between them to notice a
dead node; `mcp.py` is the tool, `page/` what a browser shows, `deploy.py` the stage.
"""
