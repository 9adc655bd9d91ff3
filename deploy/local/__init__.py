"""Kafka, Cassandra and Flink as plain processes on one machine, under one state folder."""
