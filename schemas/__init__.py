"""The contracts of freshrec: what travels through Kafka, lies in Flink's state and stands in Cassandra.

No module here opens a connection, and none imports anything else of the project.
"""
