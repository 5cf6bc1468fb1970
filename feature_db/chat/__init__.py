"""Language models that answer chat messages: an endpoint, or a local model. They label features and judge labels.

Nothing is sent anywhere unless an endpoint is given.
"""
