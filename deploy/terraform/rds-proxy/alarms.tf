# The proxy's nodes each publish these metrics, so counts are summed and latencies averaged.

# Pith pins nothing, so one pinned session is a bug, or somebody else's program.
resource "aws_cloudwatch_metric_alarm" "pinned" {
  alarm_name          = "${var.name}-proxy-pinned"
  alarm_description   = "A session is pinned: it holds a server connection until its client leaves. debug_logging tells why."
  namespace           = "AWS/RDS"
  metric_name         = "DatabaseConnectionsCurrentlySessionPinned"
  dimensions          = { ProxyName = aws_db_proxy.this.name }
  statistic           = "Sum"
  period              = 60
  evaluation_periods  = 1
  comparison_operator = "GreaterThanThreshold"
  threshold           = 0
  treat_missing_data  = "notBreaching"
  alarm_actions       = var.alarm_actions
  ok_actions          = var.alarm_actions
  tags                = var.tags
}

# In microseconds. A connection that is there is lent in well under a millisecond; at 100 ms statements
# queue, and polls come late.
resource "aws_cloudwatch_metric_alarm" "borrow_latency" {
  alarm_name          = "${var.name}-proxy-borrow-latency"
  alarm_description   = "Statements wait for a server connection: too few of them, slow statements, pinned sessions, or a failover."
  namespace           = "AWS/RDS"
  metric_name         = "DatabaseConnectionsBorrowLatency"
  dimensions          = { ProxyName = aws_db_proxy.this.name }
  statistic           = "Average"
  period              = 60
  evaluation_periods  = 5
  datapoints_to_alarm = 3
  comparison_operator = "GreaterThanThreshold"
  threshold           = 100000
  treat_missing_data  = "notBreaching"
  alarm_actions       = var.alarm_actions
  ok_actions          = var.alarm_actions
  tags                = var.tags
}

# A process keeps up to 5 client connections. AWS publishes no limit; this is ours, and a tenth.
resource "aws_cloudwatch_metric_alarm" "client_connections" {
  alarm_name          = "${var.name}-proxy-client-connections"
  alarm_description   = "More clients than ${var.worker_processes} processes can have: something leaks, or the fleet has outgrown its plan."
  namespace           = "AWS/RDS"
  metric_name         = "ClientConnections"
  dimensions          = { ProxyName = aws_db_proxy.this.name }
  statistic           = "Sum"
  period              = 60
  evaluation_periods  = 3
  comparison_operator = "GreaterThanThreshold"
  threshold           = ceil((5 * var.worker_processes + 100) * 1.1)
  treat_missing_data  = "notBreaching"
  alarm_actions       = var.alarm_actions
  ok_actions          = var.alarm_actions
  tags                = var.tags
}

resource "aws_cloudwatch_metric_alarm" "failed_auth" {
  alarm_name          = "${var.name}-proxy-failed-auth"
  alarm_description   = "Clients are refused: expired or wrong tokens, a role without a secret, or no TLS."
  namespace           = "AWS/RDS"
  metric_name         = "ClientConnectionsSetupFailedAuth"
  dimensions          = { ProxyName = aws_db_proxy.this.name }
  statistic           = "Sum"
  period              = 60
  evaluation_periods  = 5
  datapoints_to_alarm = 3
  comparison_operator = "GreaterThanThreshold"
  threshold           = 0
  treat_missing_data  = "notBreaching"
  alarm_actions       = var.alarm_actions
  ok_actions          = var.alarm_actions
  tags                = var.tags
}

# The proxy's share of the database's connections. It excludes what the proxy keeps for itself.
resource "aws_cloudwatch_metric_alarm" "server_connections" {
  alarm_name          = "${var.name}-proxy-server-connections"
  alarm_description   = "Over 80 % of MaxDatabaseConnectionsAllowed are in use: raise max_connections_percent, or find what keeps them busy."
  evaluation_periods  = 5
  datapoints_to_alarm = 3
  comparison_operator = "GreaterThanThreshold"
  threshold           = 80
  treat_missing_data  = "notBreaching"
  alarm_actions       = var.alarm_actions
  ok_actions          = var.alarm_actions
  tags                = var.tags

  metric_query {
    id          = "share"
    label       = "share of the allowed server connections, in percent"
    expression  = "IF(allowed > 0, 100 * borrowed / allowed, 0)"
    return_data = true
  }

  metric_query {
    id = "borrowed"

    metric {
      namespace   = "AWS/RDS"
      metric_name = "DatabaseConnectionsCurrentlyBorrowed"
      dimensions  = { ProxyName = aws_db_proxy.this.name }
      stat        = "Sum"
      period      = 60
    }
  }

  metric_query {
    id = "allowed"

    metric {
      namespace   = "AWS/RDS"
      metric_name = "MaxDatabaseConnectionsAllowed"
      dimensions  = { ProxyName = aws_db_proxy.this.name }
      stat        = "Sum"
      period      = 60
    }
  }
}
