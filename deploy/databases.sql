-- Runs once, when the Postgres volume is new: each service gets a database of its own.
CREATE DATABASE prefect;
CREATE DATABASE mlflow;
CREATE DATABASE mlflow_auth;
