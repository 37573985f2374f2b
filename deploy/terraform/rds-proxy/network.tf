# All proxies for PostgreSQL listen on 5432.

resource "aws_security_group" "proxy" {
  name_prefix = "${var.name}-proxy-"
  description = "RDS Proxy ${var.name}"
  vpc_id      = var.vpc_id
  tags        = var.tags

  lifecycle {
    create_before_destroy = true
  }
}

resource "aws_vpc_security_group_ingress_rule" "clients" {
  for_each = var.client_security_group_ids

  security_group_id            = aws_security_group.proxy.id
  referenced_security_group_id = each.value
  description                  = "Pith's processes"
  ip_protocol                  = "tcp"
  from_port                    = 5432
  to_port                      = 5432
}

resource "aws_vpc_security_group_egress_rule" "database" {
  security_group_id            = aws_security_group.proxy.id
  referenced_security_group_id = var.database_security_group_id
  description                  = "The database"
  ip_protocol                  = "tcp"
  from_port                    = 5432
  to_port                      = 5432
}

resource "aws_vpc_security_group_ingress_rule" "proxy" {
  security_group_id            = var.database_security_group_id
  referenced_security_group_id = aws_security_group.proxy.id
  description                  = "RDS Proxy ${var.name}"
  ip_protocol                  = "tcp"
  from_port                    = 5432
  to_port                      = 5432
}
