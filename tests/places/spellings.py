"""Ways in which people write credentials into a location. Each holds SECRET."""

SECRET = "w7JalrXUtnFEMI"

SPELLINGS = [
    f"s3://KEY:{SECRET}@bucket/x",
    f"s3://KEY:ab/{SECRET}@bucket/x",
    f"s3://KEY:ab%2F{SECRET}@bucket/x",
    f"s3://KEY:{SECRET}%40bucket/x",
    f"s3://KEY%3A{SECRET}@bucket/x",
    f"s3://KEY:a@{SECRET}@bucket/x",
    f"s3://KEY:a?b#{SECRET}@bucket/x",
    f"s3://KEY:a::{SECRET}@bucket/x",
    f"s3://KEY:12/{SECRET}@bucket/x",
    f"s3://KEY:{SECRET}",
    f"s3:/KEY:{SECRET}@bucket/x",
    f"KEY:{SECRET}@bucket/x",
    f"S3://KEY:{SECRET}@bucket/x",
    f"simplecache::s3://KEY:{SECRET}@bucket/x.yaml",
    f"zip://a.txt::https://user:{SECRET}@host/x.zip",
    f"https://user:{SECRET}@host:8080/x.gguf",
    f"https://{SECRET}@host/x.yaml",
    f"http://user:{SECRET}@[::1]/x",
    f"sftp://user:{SECRET}@host/x",
    f"https://host/x.jsonl?X-Amz-Expires=60&X-Amz-Signature={SECRET}",
    f"https://host/x?token={SECRET}",
    f"https://account.blob.core.windows.net/c/x?sv=2024&sig={SECRET}",
    f"https://host/x?a={SECRET}{SECRET}",
    f"https://host/x#access_token={SECRET}",
    f"s3://bucket/x?key=K&secret={SECRET}",
    f"hf://hf_{SECRET}{SECRET}@org/name",
]
