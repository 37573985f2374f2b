variable "name" {
  description = "Name of the proxy, and the beginning of all other names."
  type        = string
  default     = "pith"
}

variable "vpc_id" {
  description = "The VPC of the database. The proxy must be in the same one."
  type        = string
}

variable "subnet_ids" {
  description = "Subnets for the proxy, in two availability zones or more."
  type        = list(string)

  validation {
    condition     = length(var.subnet_ids) >= 2
    error_message = "A proxy needs subnets in at least two availability zones."
  }
}

variable "client_security_group_ids" {
  description = "Security groups of what may connect: workers, API processes, operators."
  type        = set(string)
}

variable "database_security_group_id" {
  description = "The database's security group. A rule is added that lets the proxy in."
  type        = string
}

variable "db_instance_identifier" {
  description = "The RDS for PostgreSQL instance. Either this or db_cluster_identifier."
  type        = string
  default     = null
}

variable "db_cluster_identifier" {
  description = "The Aurora PostgreSQL cluster. Either this or db_instance_identifier."
  type        = string
  default     = null
}

variable "secret_arns" {
  description = "For each database role that may connect, the secret that holds its username and password. A role without a secret here is refused by the proxy."
  type        = map(string)

  validation {
    condition     = length(var.secret_arns) > 0
    error_message = "At least one role must be able to connect."
  }
}

variable "secret_kms_key_arns" {
  description = "The KMS keys of those secrets that have a key of their own."
  type        = list(string)
  default     = []
}

variable "iam_auth" {
  description = "Whether clients show an IAM token (deploy/rdsiam makes them) in place of the role's password."
  type        = bool
  default     = true
}

variable "worker_processes" {
  description = "The largest number of Pith processes that are expected. It only sets the threshold of an alarm."
  type        = number
  default     = 1000
}

# Twenty server connections carry Pith, and AWS advises 30 % more than the most that was ever used: 26.
# It also advises no less than 20 % from db.t3.medium on, and 30 % on db.t3.small, since the proxy keeps
# some for itself and spreads the rest over its nodes. 20 % of the 200 that parameter_group_family
# brings are 40.
variable "max_connections_percent" {
  description = "The share of the database's max_connections that the proxy may open."
  type        = number
  default     = 20

  validation {
    condition     = var.max_connections_percent >= 1 && var.max_connections_percent <= 100
    error_message = "A percentage is from 1 to 100."
  }
}

# Connections are opened when they are needed, and kept: a fleet's load comes in surges, and a new server
# connection costs the database a process.
variable "max_idle_connections_percent" {
  description = "The share of max_connections that stays open when idle. Default: all that may be opened."
  type        = number
  default     = null
}

# Pith waits 30 s for a statement, and 10 s, or a third of the TTL if that is less, for a beat. What waits longer for a
# connection is answered to nobody, so it only lengthens the queue.
variable "connection_borrow_timeout" {
  description = "Seconds that a statement may wait for a server connection. AWS's default is 120."
  type        = number
  default     = 30
}

# Pith's pools close what was idle for 30 minutes. A little more here, and it is always the client who
# closes; a drop by the proxy is survived too: an idle connection is tried before it is used, but that of the
# beats, which fails once and is sent again.
variable "idle_client_timeout" {
  description = "Seconds after which the proxy drops an idle client. AWS's default is 1800."
  type        = number
  default     = 2400
}

variable "debug_logging" {
  description = "Logs the text of statements, and with it why sessions are pinned. For an hour, not for good."
  type        = bool
  default     = false
}

variable "parameter_group_family" {
  description = "Makes a parameter group for an RDS instance, such as postgres17, to be attached to it. Default: none is made."
  type        = string
  default     = null
}

variable "max_connections" {
  description = "max_connections in that parameter group; it takes a restart. RDS's own default grows with the memory, and the proxy's share with it."
  type        = number
  default     = 200
}

variable "alarm_actions" {
  description = "What the alarms notify: ARNs of SNS topics and the like."
  type        = list(string)
  default     = []
}

variable "tags" {
  description = "Tags of everything."
  type        = map(string)
  default     = {}
}
