locals {
  # arn:PARTITION:rds:REGION:ACCOUNT:db-proxy:prx-…
  proxy_arn = split(":", aws_db_proxy.this.arn)
}

data "aws_caller_identity" "current" {}

data "aws_iam_policy_document" "assume" {
  statement {
    actions = ["sts:AssumeRole"]

    principals {
      type        = "Service"
      identifiers = ["rds.amazonaws.com"]
    }

    # The service acts for this account only.
    condition {
      test     = "StringEquals"
      variable = "aws:SourceAccount"
      values   = [data.aws_caller_identity.current.account_id]
    }
  }
}

resource "aws_iam_role" "proxy" {
  name_prefix        = "${var.name}-proxy-"
  assume_role_policy = data.aws_iam_policy_document.assume.json
  tags               = var.tags
}

data "aws_iam_policy_document" "secrets" {
  statement {
    actions   = ["secretsmanager:GetSecretValue"]
    resources = values(var.secret_arns)
  }

  dynamic "statement" {
    for_each = length(var.secret_kms_key_arns) > 0 ? [1] : []

    content {
      actions   = ["kms:Decrypt"]
      resources = var.secret_kms_key_arns

      # The key decrypts for Secrets Manager, not for the proxy's role in general.
      condition {
        test     = "StringLike"
        variable = "kms:ViaService"
        values   = ["secretsmanager.*.amazonaws.com"]
      }
    }
  }
}

resource "aws_iam_role_policy" "secrets" {
  name_prefix = "secrets-"
  role        = aws_iam_role.proxy.id
  policy      = data.aws_iam_policy_document.secrets.json
}

# What a client's own role needs. Attach it to the roles of workers and operators.
data "aws_iam_policy_document" "connect" {
  statement {
    actions = ["rds-db:connect"]

    resources = [
      for role in keys(var.secret_arns) :
      "arn:${local.proxy_arn[1]}:rds-db:${local.proxy_arn[3]}:${local.proxy_arn[4]}:dbuser:${local.proxy_arn[6]}/${role}"
    ]
  }
}

resource "aws_iam_policy" "connect" {
  count = var.iam_auth ? 1 : 0

  name_prefix = "${var.name}-connect-"
  description = "Connect through the proxy ${var.name}"
  policy      = data.aws_iam_policy_document.connect.json
  tags        = var.tags
}
