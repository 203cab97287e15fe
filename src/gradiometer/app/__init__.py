"""The local web app with two doors: ``gradiometer view`` (a training live) and ``gradiometer lab`` (learn by playing).

All numbers and figures are made in Python; the browser draws what it is given. Needs the extra ``gradiometer[app]`` to serve.
"""
