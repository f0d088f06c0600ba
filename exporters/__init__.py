"""Where findings and figures go: a module for each format, each a function from frozen values to text or a file.

Nothing is imported here: a program that wants the text report must not pay for Prometheus or HTTP.  Exporters speak
only the nouns of ``concagent.model`` and never meet the hooks; so a format can be added, tested or removed alone.
"""
