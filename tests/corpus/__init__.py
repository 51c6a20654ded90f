"""Dialogues between real Asterisks and FastAGI servers, recorded byte for byte."""
