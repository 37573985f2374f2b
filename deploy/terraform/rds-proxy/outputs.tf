output "endpoint" {
  description = "The host for the database URL. A token is signed for this name, so use no alias of it."
  value       = aws_db_proxy.this.endpoint
}

output "database_url" {
  description = "PITH_DATABASE_URL, but for the database's name. Go programs find Amazon's roots in the system's store."
  value = {
    for role in keys(var.secret_arns) :
    role => "postgres://${role}@${aws_db_proxy.this.endpoint}:5432/DATABASE?sslmode=verify-full"
  }
}

output "connect_policy_arn" {
  description = "The policy that the clients' IAM roles need; null without IAM authentication."
  value       = one(aws_iam_policy.connect[*].arn)
}

output "security_group_id" {
  description = "The proxy's security group."
  value       = aws_security_group.proxy.id
}

output "parameter_group_name" {
  description = "The parameter group to attach to the instance; null if none was made."
  value       = one(aws_db_parameter_group.this[*].name)
}
