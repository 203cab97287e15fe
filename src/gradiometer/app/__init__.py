"""The local web app: ``gradiometer lab``, where the subject is learned by playing with it.

All numbers and figures are made in Python; the browser draws what it is given. Needs the extra ``gradiometer[app]`` to serve.
"""
