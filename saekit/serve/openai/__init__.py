"""The endpoint in the format of OpenAI's API, with steered models and interventions of a request's own."""
