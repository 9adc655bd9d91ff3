"""The trainer: keeps a model current from the clicks in Kafka and publishes it as releases."""
