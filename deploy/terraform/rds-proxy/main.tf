# Amazon RDS Proxy for Pith. docs/deploy-rds-proxy.md has the arithmetic and what to expect.

resource "aws_db_proxy" "this" {
  name                   = var.name
  engine_family          = "POSTGRESQL"
  role_arn               = aws_iam_role.proxy.arn
  vpc_subnet_ids         = var.subnet_ids
  vpc_security_group_ids = [aws_security_group.proxy.id]
  idle_client_timeout    = var.idle_client_timeout
  debug_logging          = var.debug_logging

  # A token goes over the wire in clear text inside TLS, and Pith sends it in no other way.
  require_tls = true

  dynamic "auth" {
    for_each = var.secret_arns

    content {
      # The proxy itself logs in with the secret's password. Don't grant rds_iam to these roles.
      auth_scheme               = "SECRETS"
      description               = auth.key
      secret_arn                = auth.value
      iam_auth                  = var.iam_auth ? "REQUIRED" : "DISABLED"
      client_password_auth_type = var.iam_auth ? null : "POSTGRES_SCRAM_SHA_256"
    }
  }

  tags = var.tags
}

resource "aws_db_proxy_default_target_group" "this" {
  db_proxy_name = aws_db_proxy.this.name

  connection_pool_config {
    max_connections_percent      = var.max_connections_percent
    max_idle_connections_percent = coalesce(var.max_idle_connections_percent, var.max_connections_percent)
    connection_borrow_timeout    = var.connection_borrow_timeout

    # session_pinning_filters has one published value, EXCLUDE_VARIABLE_SETS, and AWS does not support it
    # for PostgreSQL. Pith sends nothing that it would have to hide.

    # init_query stays empty. Its SETs would hold for every role and every program behind the proxy, and
    # nobody who looks at the role would see them: ALTER ROLE … SET does the same in the open.
  }

  lifecycle {
    replace_triggered_by = [aws_db_proxy.this.id]
  }
}

resource "aws_db_proxy_target" "this" {
  db_proxy_name          = aws_db_proxy.this.name
  target_group_name      = aws_db_proxy_default_target_group.this.name
  db_instance_identifier = var.db_instance_identifier
  db_cluster_identifier  = var.db_cluster_identifier

  lifecycle {
    replace_triggered_by = [aws_db_proxy.this.id]

    precondition {
      condition     = (var.db_instance_identifier == null) != (var.db_cluster_identifier == null)
      error_message = "Set either db_instance_identifier or db_cluster_identifier."
    }
  }
}

# Timeouts are not here: they belong to the role (ALTER ROLE … SET), for others use this database too.
resource "aws_db_parameter_group" "this" {
  count = var.parameter_group_family == null ? 0 : 1

  name_prefix = "${var.name}-"
  family      = var.parameter_group_family
  description = "PostgreSQL behind the proxy ${var.name}"

  parameter {
    name         = "max_connections"
    value        = var.max_connections
    apply_method = "pending-reboot"
  }

  # The proxy speaks TLS to the database, and so must whoever goes around it.
  parameter {
    name  = "rds.force_ssl"
    value = "1"
  }

  # Whoever waits for a lock for longer than deadlock_timeout gets into the log.
  parameter {
    name  = "log_lock_waits"
    value = "1"
  }

  lifecycle {
    create_before_destroy = true
  }

  tags = var.tags
}
