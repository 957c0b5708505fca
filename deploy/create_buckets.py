"""Create the S3 buckets that the services use, if they are missing (docker-compose.yml runs it once S3 is healthy)."""

import os

import boto3

BUCKETS = ("mlflow", "pipeline")
"""MLflow's artifacts; the store that all workers share."""


def main() -> None:
    """Create each of ``BUCKETS`` at ``AWS_ENDPOINT_URL`` with the credentials of the environment."""
    s3 = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
    there = {bucket["Name"] for bucket in s3.list_buckets()["Buckets"]}
    for name in BUCKETS:
        if name not in there:
            s3.create_bucket(Bucket=name)
            print(f"created s3://{name}")


if __name__ == "__main__":
    main()
