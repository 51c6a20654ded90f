-- Facts about the VICIdial tables the FastAGI daemon touches, restated for a test database.
-- Only the columns it reads or writes, plus keys and the columns needed to seed a row. MariaDB 10.11.
-- Original engine in the comment above each table; everything except the small MEMORY tables is InnoDB here.
-- The session that loads test rows must run WITHOUT strict mode:
--   SET SESSION sql_mode='NO_ENGINE_SUBSTITUTION';
-- (ENUM columns receive values outside their list and dates receive ''.)

-- servers this installation runs; read at start and on every request (original engine: MyISAM)
CREATE TABLE `servers` (
  `server_id`                  VARCHAR(10) NOT NULL,
  `server_ip`                  VARCHAR(15) NOT NULL,
  `asterisk_version`           VARCHAR(20) DEFAULT '1.4.21.2',
  `vd_server_logs`             ENUM('Y','N') DEFAULT 'Y',
  `agi_output`                 ENUM('NONE','STDERR','FILE','BOTH') DEFAULT 'FILE',
  `carrier_logging_active`     ENUM('Y','N') DEFAULT 'Y',
  `external_server_ip`         VARCHAR(100) DEFAULT '',
  UNIQUE KEY `server_id` (`server_id`)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb3;

-- one row; global switches (original engine: MyISAM)
CREATE TABLE `system_settings` (
  `highest_lead_id`            VARCHAR(20) DEFAULT '0',
  `enhanced_disconnect_logging` ENUM('0','1','2','3','4','5','6') DEFAULT '0',
  `enable_queuemetrics_logging` ENUM('0','1') DEFAULT '0',
  `queuemetrics_server_ip`     VARCHAR(15) NULL,
  `queuemetrics_dbname`        VARCHAR(50) NULL,
  `queuemetrics_login`         VARCHAR(50) NULL,
  `queuemetrics_pass`          VARCHAR(50) NULL,
  `queuemetrics_log_id`        VARCHAR(10) DEFAULT 'VIC',
  `queuemetrics_socket`        VARCHAR(20) DEFAULT 'NONE',
  `queuemetrics_socket_url`    TEXT NULL,
  `enable_drop_lists`          ENUM('0','1','2') DEFAULT '0',
  `call_quota_lead_ranking`    ENUM('0','1','2') DEFAULT '0',
  `timeclock_end_of_day`       VARCHAR(4) DEFAULT '0000',
  `call_limit_24hour`          ENUM('0','1') DEFAULT '0',
  `hopper_hold_inserts`        ENUM('0','1','2','3','4','5','6','7') DEFAULT '0',
  `opensips_cid_name`          ENUM('0','1') DEFAULT '0'
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb3;

-- only counted, to tell a client phone from a trunk (original engine: MyISAM)
CREATE TABLE `phones` (
  `extension`                  VARCHAR(100) NULL,
  `dialplan_number`            VARCHAR(20) NULL,
  `server_ip`                  VARCHAR(15) NULL,
  `protocol`                   ENUM('SIP','PJSIP','Zap','IAX2','EXTERNAL') DEFAULT 'SIP',
  UNIQUE KEY `extenserver` (`extension`, `server_ip`),
  KEY `dialplan_number` (`dialplan_number`),
  KEY `server_ip` (`server_ip`)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb3;

-- AMI action queue; read at START in the rare "no number yet" case (original engine: MyISAM)
CREATE TABLE `vicidial_manager` (
  `man_id`                     INT(9) UNSIGNED NOT NULL AUTO_INCREMENT,
  `callerid`                   VARCHAR(20) NULL,
  `cmd_line_b`                 VARCHAR(100) NULL,
  `cmd_line_d`                 VARCHAR(200) NULL,
  PRIMARY KEY (`man_id`),
  KEY `callerid` (`callerid`)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb3;

-- live calls ("VAC") (original engine: MEMORY)
CREATE TABLE `vicidial_auto_calls` (
  `auto_call_id`               INT(9) UNSIGNED NOT NULL AUTO_INCREMENT,
  `server_ip`                  VARCHAR(15) NOT NULL,
  `campaign_id`                VARCHAR(20) NULL,
  `status`                     ENUM('SENT','RINGING','LIVE','XFER','PAUSED','CLOSER','BUSY','DISCONNECT','IVR') DEFAULT 'PAUSED',
  `lead_id`                    INT(9) UNSIGNED NOT NULL,
  `uniqueid`                   VARCHAR(20) NULL,
  `callerid`                   VARCHAR(20) NULL,
  `channel`                    VARCHAR(100) NULL,
  `phone_code`                 VARCHAR(10) NULL,
  `phone_number`               VARCHAR(18) NULL,
  `call_time`                  DATETIME NULL,
  `call_type`                  ENUM('IN','OUT','OUTBALANCE') DEFAULT 'OUT',
  `stage`                      VARCHAR(20) DEFAULT 'START',
  `last_update_time`           TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP ON UPDATE CURRENT_TIMESTAMP,
  `alt_dial`                   VARCHAR(6) DEFAULT 'NONE',
  `agent_only`                 VARCHAR(20) DEFAULT '',
  `queue_position`             SMALLINT(4) UNSIGNED DEFAULT 1,
  PRIMARY KEY (`auto_call_id`),
  KEY `callerid` (`callerid`),
  KEY `call_time` (`call_time`),
  KEY `last_update_time` (`last_update_time`),
  KEY `uniqueid` (`uniqueid`)
) ENGINE=MEMORY DEFAULT CHARSET=utf8mb3;

-- campaign settings (original engine: MyISAM)
CREATE TABLE `vicidial_campaigns` (
  `campaign_id`                VARCHAR(8) NOT NULL,
  `dial_timeout`               TINYINT(3) UNSIGNED DEFAULT 60,
  `manual_dial_timeout`        VARCHAR(3) DEFAULT '',
  `campaign_vdad_exten`        VARCHAR(20) DEFAULT '8368',
  `amd_type`                   ENUM('AMD','CPD','KHOMP') DEFAULT 'AMD',
  `opensips_cid_name`          VARCHAR(15) DEFAULT '',
  `khomp_settings_container`   VARCHAR(40) DEFAULT 'KHOMPSETTINGS',
  `auto_alt_dial`              ENUM('NONE','ALT_ONLY','ADDR3_ONLY','ALT_AND_ADDR3','ALT_AND_EXTENDED','ALT_AND_ADDR3_AND_EXTENDED','EXTENDED_ONLY','MULTI_LEAD') DEFAULT 'NONE',
  `auto_alt_dial_statuses`     VARCHAR(255) DEFAULT ' B N NA DC -',
  `auto_alt_threshold`         TINYINT(3) UNSIGNED DEFAULT 0,
  `use_internal_dnc`           ENUM('Y','N','AREACODE') DEFAULT 'N',
  `use_campaign_dnc`           ENUM('Y','N','AREACODE') DEFAULT 'N',
  `use_other_campaign_dnc`     VARCHAR(8) DEFAULT '',
  `call_quota_lead_ranking`    VARCHAR(40) DEFAULT 'DISABLED',
  `call_limit_24hour_method`   ENUM('DISABLED','PHONE_NUMBER','LEAD') DEFAULT 'DISABLED',
  `call_limit_24hour_scope`    ENUM('SYSTEM_WIDE','CAMPAIGN_LISTS') DEFAULT 'SYSTEM_WIDE',
  `call_limit_24hour`          TINYINT(3) UNSIGNED DEFAULT 0,
  `call_limit_24hour_override` VARCHAR(40) DEFAULT 'DISABLED',
  `hopper_hold_inserts`        ENUM('ENABLED','DISABLED','AUTONEXT') DEFAULT 'DISABLED',
  PRIMARY KEY (`campaign_id`)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb3;

-- in-group settings (original engine: MyISAM)
CREATE TABLE `vicidial_inbound_groups` (
  `group_id`                   VARCHAR(20) NOT NULL,
  `drop_lead_reset`            ENUM('Y','N') DEFAULT 'N',
  PRIMARY KEY (`group_id`)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb3;

-- list settings (original engine: MyISAM)
CREATE TABLE `vicidial_lists` (
  `list_id`                    BIGINT(14) UNSIGNED NOT NULL,
  `campaign_id`                VARCHAR(8) NULL,
  `auto_alt_threshold`         TINYINT(3) DEFAULT -1,
  PRIMARY KEY (`list_id`)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb3;

-- free-text settings (original engine: MyISAM)
CREATE TABLE `vicidial_settings_containers` (
  `container_id`               VARCHAR(40) NOT NULL,
  `container_entry`            MEDIUMTEXT NULL,
  PRIMARY KEY (`container_id`)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb3;

-- one row per channel leg (original engine: MyISAM)
CREATE TABLE `call_log` (
  `uniqueid`                   VARCHAR(20) NOT NULL,
  `channel`                    VARCHAR(100) NULL,
  `channel_group`              VARCHAR(30) NULL,
  `type`                       VARCHAR(10) NULL,
  `server_ip`                  VARCHAR(15) NULL,
  `extension`                  VARCHAR(100) NULL,
  `number_dialed`              VARCHAR(15) NULL,
  `caller_code`                VARCHAR(20) NULL,
  `start_time`                 DATETIME NULL,
  `start_epoch`                INT(10) NULL,
  `end_time`                   DATETIME NULL,
  `end_epoch`                  INT(10) NULL,
  `length_in_sec`              INT(10) NULL,
  `length_in_min`              DOUBLE(8,2) NULL,
  PRIMARY KEY (`uniqueid`),
  KEY `caller_code` (`caller_code`),
  KEY `channel` (`channel`),
  KEY `end_time` (`end_time`),
  KEY `server_ip` (`server_ip`),
  KEY `start_time` (`start_time`),
  KEY `time` (`start_time`, `end_time`)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb3;

-- one row per dialled leg (original engine: MyISAM)
CREATE TABLE `vicidial_carrier_log` (
  `uniqueid`                   VARCHAR(20) NOT NULL,
  `call_date`                  DATETIME NULL,
  `server_ip`                  VARCHAR(15) NOT NULL,
  `lead_id`                    INT(9) UNSIGNED NULL,
  `hangup_cause`               TINYINT(1) UNSIGNED DEFAULT 0,
  `dialstatus`                 VARCHAR(16) NULL,
  `channel`                    VARCHAR(100) NULL,
  `dial_time`                  SMALLINT(3) UNSIGNED DEFAULT 0,
  `answered_time`              SMALLINT(4) UNSIGNED DEFAULT 0,
  `sip_hangup_cause`           SMALLINT(4) UNSIGNED DEFAULT 0,
  `sip_hangup_reason`          VARCHAR(50) DEFAULT '',
  `caller_code`                VARCHAR(30) DEFAULT '',
  PRIMARY KEY (`uniqueid`),
  KEY `call_date` (`call_date`),
  KEY `lead_id` (`lead_id`)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb3;

-- written by the dialer, completed at hangup (original engine: MyISAM)
CREATE TABLE `vicidial_dial_log` (
  `caller_code`                VARCHAR(30) NOT NULL,
  `lead_id`                    INT(9) UNSIGNED DEFAULT 0,
  `server_ip`                  VARCHAR(15) NULL,
  `call_date`                  DATETIME NULL,
  `sip_hangup_cause`           SMALLINT(4) UNSIGNED DEFAULT 0,
  `sip_hangup_reason`          VARCHAR(50) DEFAULT '',
  `uniqueid`                   VARCHAR(20) DEFAULT '',
  KEY `caller_code` (`caller_code`),
  KEY `call_date` (`call_date`),
  KEY `lead_id` (`lead_id`)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb3;

-- leads (original engine: MyISAM)
CREATE TABLE `vicidial_list` (
  `lead_id`                    INT(9) UNSIGNED NOT NULL AUTO_INCREMENT,
  `modify_date`                TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP ON UPDATE CURRENT_TIMESTAMP,
  `status`                     VARCHAR(6) NULL,
  `vendor_lead_code`           VARCHAR(20) NULL,
  `list_id`                    BIGINT(14) UNSIGNED NOT NULL DEFAULT 0,
  `gmt_offset_now`             DECIMAL(4,2) DEFAULT 0.00,
  `called_since_last_reset`    ENUM('Y','N','Y1','Y2','Y3','Y4','Y5','Y6','Y7','Y8','Y9','Y10','D') DEFAULT 'N',
  `phone_code`                 VARCHAR(10) NULL,
  `phone_number`               VARCHAR(18) NOT NULL,
  `title`                      VARCHAR(4) NULL,
  `first_name`                 VARCHAR(30) NULL,
  `middle_initial`             VARCHAR(1) NULL,
  `last_name`                  VARCHAR(30) NULL,
  `address3`                   VARCHAR(100) NULL,
  `state`                      VARCHAR(2) NULL,
  `postal_code`                VARCHAR(10) NULL,
  `alt_phone`                  VARCHAR(12) NULL,
  `called_count`               SMALLINT(5) UNSIGNED DEFAULT 0,
  `rank`                       SMALLINT(5) NOT NULL DEFAULT 0,
  PRIMARY KEY (`lead_id`),
  KEY `called_since_last_reset` (`called_since_last_reset`),
  KEY `gmt_offset_now` (`gmt_offset_now`),
  KEY `list_id` (`list_id`),
  KEY `list_phone` (`list_id`, `phone_number`),
  KEY `list_status` (`list_id`, `status`),
  KEY `phone_list` (`phone_number`, `list_id`),
  KEY `phone_number` (`phone_number`),
  KEY `postal_code` (`postal_code`),
  KEY `rank` (`rank`),
  KEY `status` (`status`)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb3;

-- outbound call log (original engine: MyISAM)
CREATE TABLE `vicidial_log` (
  `uniqueid`                   VARCHAR(20) NOT NULL,
  `lead_id`                    INT(9) UNSIGNED NOT NULL,
  `list_id`                    BIGINT(14) UNSIGNED NULL,
  `campaign_id`                VARCHAR(8) NULL,
  `call_date`                  DATETIME NULL,
  `start_epoch`                INT(10) UNSIGNED NULL,
  `end_epoch`                  INT(10) UNSIGNED NULL,
  `length_in_sec`              INT(10) NULL,
  `status`                     VARCHAR(6) NULL,
  `phone_code`                 VARCHAR(10) NULL,
  `phone_number`               VARCHAR(18) NULL,
  `user`                       VARCHAR(20) NULL,
  `comments`                   VARCHAR(255) NULL,
  `processed`                  ENUM('Y','N') NULL,
  `term_reason`                ENUM('CALLER','AGENT','QUEUETIMEOUT','ABANDON','AFTERHOURS','NONE','SYSTEM') DEFAULT 'NONE',
  `alt_dial`                   VARCHAR(6) DEFAULT 'NONE',
  `called_count`               SMALLINT(5) UNSIGNED DEFAULT 0,
  PRIMARY KEY (`uniqueid`),
  KEY `call_date` (`call_date`),
  KEY `lead_id` (`lead_id`)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb3;

-- extra outbound call facts (original engine: MyISAM)
CREATE TABLE `vicidial_log_extended` (
  `uniqueid`                   VARCHAR(50) NOT NULL,
  `server_ip`                  VARCHAR(15) NULL,
  `call_date`                  DATETIME NULL,
  `lead_id`                    INT(9) UNSIGNED NULL,
  `caller_code`                VARCHAR(30) NOT NULL,
  `custom_call_id`             VARCHAR(100) NULL,
  PRIMARY KEY (`uniqueid`),
  KEY `call_date` (`call_date`),
  KEY `vlecc` (`caller_code`),
  KEY `vle_lead_id` (`lead_id`)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb3;

-- inbound / transfer call log (original engine: MyISAM)
CREATE TABLE `vicidial_closer_log` (
  `closecallid`                INT(9) UNSIGNED NOT NULL AUTO_INCREMENT,
  `lead_id`                    INT(9) UNSIGNED NOT NULL,
  `campaign_id`                VARCHAR(20) NULL,
  `call_date`                  DATETIME NULL,
  `start_epoch`                INT(10) UNSIGNED NULL,
  `end_epoch`                  INT(10) UNSIGNED NULL,
  `length_in_sec`              INT(10) NULL,
  `status`                     VARCHAR(6) NULL,
  `user`                       VARCHAR(20) NULL,
  `comments`                   VARCHAR(255) NULL,
  `queue_seconds`              DECIMAL(7,2) DEFAULT 0.00,
  `term_reason`                ENUM('CALLER','AGENT','QUEUETIMEOUT','ABANDON','AFTERHOURS','HOLDRECALLXFER','HOLDTIME','NOAGENT','NONE','MAXCALLS','ACFILTER','CLOSETIME') DEFAULT 'NONE',
  `uniqueid`                   VARCHAR(20) NOT NULL DEFAULT '',
  `agent_only`                 VARCHAR(20) DEFAULT '',
  `queue_position`             SMALLINT(4) UNSIGNED DEFAULT 1,
  PRIMARY KEY (`closecallid`),
  KEY `call_date` (`call_date`),
  KEY `campaign_id` (`campaign_id`),
  KEY `date_user` (`call_date`, `user`),
  KEY `lead_id` (`lead_id`),
  KEY `uniqueid` (`uniqueid`)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb3;

-- dropped calls for the drop-list feature (original engine: MyISAM)
CREATE TABLE `vicidial_drop_log` (
  `uniqueid`                   VARCHAR(50) NOT NULL,
  `server_ip`                  VARCHAR(15) NOT NULL,
  `drop_date`                  DATETIME NOT NULL,
  `lead_id`                    INT(9) UNSIGNED NOT NULL,
  `phone_code`                 VARCHAR(10) NULL,
  `phone_number`               VARCHAR(18) NULL,
  `campaign_id`                VARCHAR(20) NOT NULL,
  `status`                     VARCHAR(6) NOT NULL,
  `drop_processed`             ENUM('N','Y','U') DEFAULT 'N',
  KEY `drop_date` (`drop_date`),
  KEY `drop_processed` (`drop_processed`)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb3;

-- logged-in agents; only ring_callerid is touched (original engine: MyISAM)
CREATE TABLE `vicidial_live_agents` (
  `live_agent_id`              INT(9) UNSIGNED NOT NULL AUTO_INCREMENT,
  `user`                       VARCHAR(20) NULL,
  `server_ip`                  VARCHAR(15) NOT NULL,
  `lead_id`                    INT(9) UNSIGNED NOT NULL,
  `ring_callerid`              VARCHAR(20) DEFAULT '',
  PRIMARY KEY (`live_agent_id`),
  KEY `vlali` (`lead_id`),
  KEY `vlaus` (`user`)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb3;

-- calls waiting to be dialled (original engine: MEMORY)
CREATE TABLE `vicidial_hopper` (
  `hopper_id`                  INT(9) UNSIGNED NOT NULL AUTO_INCREMENT,
  `lead_id`                    INT(9) UNSIGNED NOT NULL,
  `campaign_id`                VARCHAR(8) NULL,
  `status`                     ENUM('READY','QUEUE','INCALL','DONE','HOLD','DNC','RHOLD','RQUEUE') DEFAULT 'READY',
  `user`                       VARCHAR(20) NULL,
  `list_id`                    BIGINT(14) UNSIGNED NOT NULL,
  `gmt_offset_now`             DECIMAL(4,2) DEFAULT 0.00,
  `state`                      VARCHAR(2) DEFAULT '',
  `alt_dial`                   VARCHAR(6) DEFAULT 'NONE',
  `priority`                   TINYINT(2) DEFAULT 0,
  `source`                     VARCHAR(1) DEFAULT '',
  `vendor_lead_code`           VARCHAR(20) DEFAULT '',
  PRIMARY KEY (`hopper_id`),
  KEY `lead_id` (`lead_id`)
) ENGINE=MEMORY DEFAULT CHARSET=utf8mb3;

-- extended alternate numbers (original engine: MyISAM)
CREATE TABLE `vicidial_list_alt_phones` (
  `alt_phone_id`               INT(9) UNSIGNED NOT NULL AUTO_INCREMENT,
  `lead_id`                    INT(9) UNSIGNED NOT NULL,
  `phone_code`                 VARCHAR(10) NULL,
  `phone_number`               VARCHAR(18) NULL,
  `alt_phone_count`            SMALLINT(5) UNSIGNED NULL,
  `active`                     ENUM('Y','N') DEFAULT 'Y',
  PRIMARY KEY (`alt_phone_id`),
  KEY `lead_id` (`lead_id`),
  KEY `phone_number` (`phone_number`)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb3;

-- system do-not-call (original engine: MyISAM)
CREATE TABLE `vicidial_dnc` (
  `phone_number`               VARCHAR(18) NOT NULL,
  PRIMARY KEY (`phone_number`)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb3;

-- campaign do-not-call (original engine: MyISAM)
CREATE TABLE `vicidial_campaign_dnc` (
  `phone_number`               VARCHAR(18) NOT NULL,
  `campaign_id`                VARCHAR(8) NOT NULL,
  UNIQUE KEY `phonecamp` (`phone_number`, `campaign_id`),
  KEY `phone_number` (`phone_number`)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb3;

-- 24-hour call counter (original engine: MyISAM)
CREATE TABLE `vicidial_lead_24hour_calls` (
  `lead_id`                    INT(9) UNSIGNED NOT NULL,
  `list_id`                    BIGINT(14) UNSIGNED DEFAULT 0,
  `call_date`                  DATETIME NULL,
  `phone_number`               VARCHAR(18) NULL,
  `phone_code`                 VARCHAR(10) NULL,
  KEY `call_date` (`call_date`),
  KEY `lead_id` (`lead_id`),
  KEY `phone_number` (`phone_number`)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb3;

-- area code facts (original engine: MyISAM)
CREATE TABLE `vicidial_phone_codes` (
  `country_code`               SMALLINT(5) UNSIGNED NULL,
  `country`                    CHAR(3) NULL,
  `areacode`                   CHAR(3) NULL,
  `state`                      VARCHAR(4) NULL,
  KEY `country_area_code` (`country_code`, `areacode`),
  KEY `country_code` (`country_code`),
  KEY `country_state` (`country_code`, `state`)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb3;

-- postal code facts (original engine: MyISAM)
CREATE TABLE `vicidial_postal_codes` (
  `postal_code`                VARCHAR(10) NOT NULL,
  `state`                      VARCHAR(4) NULL
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb3;

-- call quota counters (original engine: MyISAM)
CREATE TABLE `vicidial_lead_call_quota_counts` (
  `lead_id`                    INT(9) UNSIGNED NOT NULL,
  `list_id`                    BIGINT(14) UNSIGNED DEFAULT 0,
  `first_call_date`            DATETIME NULL,
  `last_call_date`             DATETIME NULL,
  `status`                     VARCHAR(6) NULL,
  `called_count`               SMALLINT(5) UNSIGNED DEFAULT 0,
  `session_one_calls`          TINYINT(3) DEFAULT 0,
  `session_two_calls`          TINYINT(3) DEFAULT 0,
  `session_three_calls`        TINYINT(3) DEFAULT 0,
  `session_four_calls`         TINYINT(3) DEFAULT 0,
  `session_five_calls`         TINYINT(3) DEFAULT 0,
  `session_six_calls`          TINYINT(3) DEFAULT 0,
  `day_one_calls`              TINYINT(3) DEFAULT 0,
  `day_two_calls`              TINYINT(3) DEFAULT 0,
  `day_three_calls`            TINYINT(3) DEFAULT 0,
  `day_four_calls`             TINYINT(3) DEFAULT 0,
  `day_five_calls`             TINYINT(3) DEFAULT 0,
  `day_six_calls`              TINYINT(3) DEFAULT 0,
  `day_seven_calls`            TINYINT(3) DEFAULT 0,
  `session_one_today_calls`    TINYINT(3) DEFAULT 0,
  `session_two_today_calls`    TINYINT(3) DEFAULT 0,
  `session_three_today_calls`  TINYINT(3) DEFAULT 0,
  `session_four_today_calls`   TINYINT(3) DEFAULT 0,
  `session_five_today_calls`   TINYINT(3) DEFAULT 0,
  `session_six_today_calls`    TINYINT(3) DEFAULT 0,
  `rank`                       SMALLINT(5) NOT NULL DEFAULT 0,
  `modify_date`                DATETIME NULL,
  UNIQUE KEY `vlcqc_lead_list` (`lead_id`, `list_id`),
  KEY `last_call_date` (`last_call_date`),
  KEY `list_id` (`list_id`),
  KEY `modify_date` (`modify_date`)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb3;

-- Sangoma CPD results (original engine: MyISAM)
CREATE TABLE `vicidial_cpd_log` (
  `cpd_id`                     INT(10) UNSIGNED NOT NULL AUTO_INCREMENT,
  `channel`                    VARCHAR(100) NOT NULL,
  `callerid`                   VARCHAR(20) NULL,
  `server_ip`                  VARCHAR(15) NOT NULL,
  `result`                     VARCHAR(20) NULL,
  PRIMARY KEY (`cpd_id`),
  KEY `callerid` (`callerid`)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb3;

-- calls parked now (original engine: MEMORY)
CREATE TABLE `parked_channels` (
  `channel`                    VARCHAR(100) NOT NULL,
  `server_ip`                  VARCHAR(15) NOT NULL,
  `channel_group`              VARCHAR(30) NULL
) ENGINE=MEMORY DEFAULT CHARSET=utf8mb3;

-- calls parked recently (original engine: MyISAM)
CREATE TABLE `parked_channels_recent` (
  `channel`                    VARCHAR(100) NOT NULL,
  `server_ip`                  VARCHAR(15) NOT NULL,
  `channel_group`              VARCHAR(30) NULL,
  `park_end_time`              DATETIME NULL,
  KEY `channel_group` (`channel_group`),
  KEY `park_end_time` (`park_end_time`)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb3;

-- channels alive, refreshed by another process (original engine: MEMORY)
CREATE TABLE `live_channels` (
  `channel`                    VARCHAR(100) NOT NULL,
  `server_ip`                  VARCHAR(15) NOT NULL
) ENGINE=MEMORY DEFAULT CHARSET=utf8mb3;

-- astGUIclient inbound popups (original engine: MyISAM)
CREATE TABLE `live_inbound` (
  `uniqueid`                   VARCHAR(20) NOT NULL,
  `channel`                    VARCHAR(100) NOT NULL,
  `server_ip`                  VARCHAR(15) NOT NULL
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb3;

-- park history (original engine: MyISAM)
CREATE TABLE `park_log` (
  `uniqueid`                   VARCHAR(20) DEFAULT '',
  `status`                     VARCHAR(10) NULL,
  `server_ip`                  VARCHAR(15) NULL,
  `parked_time`                DATETIME NULL,
  `grab_time`                  DATETIME NULL,
  `hangup_time`                DATETIME NULL,
  `parked_sec`                 INT(10) NULL,
  `talked_sec`                 INT(10) NULL,
  KEY `parked_time` (`parked_time`),
  KEY `uniqueid_park` (`uniqueid`)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb3;

-- recordings (original engine: MyISAM)
CREATE TABLE `recording_log` (
  `recording_id`               INT(10) UNSIGNED NOT NULL AUTO_INCREMENT,
  `start_time`                 DATETIME NULL,
  `start_epoch`                INT(10) UNSIGNED NULL,
  `end_time`                   DATETIME NULL,
  `end_epoch`                  INT(10) UNSIGNED NULL,
  `length_in_sec`              MEDIUMINT(8) UNSIGNED NULL,
  `length_in_min`              DOUBLE(8,2) NULL,
  `filename`                   VARCHAR(100) NULL,
  `vicidial_id`                VARCHAR(20) NULL,
  PRIMARY KEY (`recording_id`),
  KEY `filename` (`filename`),
  KEY `vicidial_id` (`vicidial_id`)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb3;

-- manager listen / barge / whisper log (original engine: MyISAM)
CREATE TABLE `vicidial_rt_monitor_log` (
  `caller_code`                VARCHAR(20) NULL,
  `monitor_start_time`         DATETIME NULL,
  `monitor_end_time`           DATETIME NULL,
  `monitor_sec`                INT(9) UNSIGNED DEFAULT 0,
  UNIQUE KEY `caller_code` (`caller_code`),
  KEY `monitor_start_time` (`monitor_start_time`)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb3;

-- outside-agent press calls, live (original engine: MyISAM)
CREATE TABLE `vicidial_3way_press_live` (
  `call_3way_id`               VARCHAR(30) NOT NULL,
  `status`                     VARCHAR(40) NULL,
  KEY `call_3way_id` (`call_3way_id`)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb3;

-- outside-agent press calls, history (original engine: MyISAM)
CREATE TABLE `vicidial_3way_press_log` (
  `call_3way_id`               VARCHAR(30) NOT NULL,
  `result`                     TEXT NULL,
  KEY `call_3way_id` (`call_3way_id`)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb3;

-- KHOMP analytics log (original engine: MyISAM)
CREATE TABLE `vicidial_khomp_log` (
  `khomp_log_id`               INT(9) UNSIGNED NOT NULL AUTO_INCREMENT,
  `caller_code`                VARCHAR(30) NOT NULL,
  `lead_id`                    INT(10) UNSIGNED DEFAULT 0,
  `server_ip`                  VARCHAR(15) NOT NULL,
  `khomp_header`               VARCHAR(100) NULL,
  `khomp_id`                   VARCHAR(256) NULL,
  `khomp_id_format`            ENUM('CALLERCODE','CALLERCODE_EXTERNIP','CALLERCODE_CAMP_EXTERNIP') NULL,
  `sip_call_id`                VARCHAR(256) NULL,
  `start_date`                 DATETIME(6) NULL,
  `audio_date`                 DATETIME(6) NULL,
  `answer_date`                DATETIME(6) NULL,
  `end_date`                   DATETIME(6) NULL,
  `analyzer_date`              DATETIME(6) NULL,
  `conclusion`                 VARCHAR(100) NULL,
  `pattern`                    VARCHAR(256) NULL,
  `action`                     VARCHAR(100) NULL,
  `hangup_origin`              VARCHAR(20) NULL,
  `hangup_cause_recv`          VARCHAR(20) NULL,
  `hangup_cause_sent`          VARCHAR(20) NULL,
  `hangup_auth_time`           VARCHAR(20) DEFAULT '0',
  `hangup_query_time`          VARCHAR(20) DEFAULT '0',
  `route_auth_time`            VARCHAR(20) DEFAULT '0',
  `route_query_time`           VARCHAR(20) DEFAULT '0',
  `vici_action`                VARCHAR(10) NULL,
  `vici_status`                VARCHAR(6) NULL,
  `khomp_settings_container`   VARCHAR(40) NULL,
  PRIMARY KEY (`khomp_log_id`),
  KEY `caller_code` (`caller_code`),
  KEY `khomp_id` (`khomp_id`),
  KEY `start_date` (`start_date`)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb3;

-- QueueMetrics database (separate schema, reached with the queuemetrics_* settings). Not part of the VICIdial schema:
-- the shape below only has to accept the columns the daemon names.
-- CREATE DATABASE queuemetrics; USE queuemetrics;
CREATE TABLE `queue_log` (
  `partition`         VARCHAR(20)  NOT NULL DEFAULT '',
  `time_id`           INT UNSIGNED NOT NULL DEFAULT 0,
  `call_id`           VARCHAR(50)  NOT NULL DEFAULT '',
  `queue`             VARCHAR(50)  NOT NULL DEFAULT '',
  `agent`             VARCHAR(50)  NOT NULL DEFAULT '',
  `verb`              VARCHAR(30)  NOT NULL DEFAULT '',
  `data1`             VARCHAR(200) NOT NULL DEFAULT '',
  `data2`             VARCHAR(200) NOT NULL DEFAULT '',
  `data3`             VARCHAR(200) NOT NULL DEFAULT '',
  `data4`             VARCHAR(200) NOT NULL DEFAULT '',
  `serverid`          VARCHAR(10)  NOT NULL DEFAULT '',
  `unique_row_count`  INT UNSIGNED NOT NULL AUTO_INCREMENT,
  PRIMARY KEY (`unique_row_count`),
  KEY `call_id_time` (`call_id`, `time_id`)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb3;

-- Minimal seed so that the daemon can serve requests.
INSERT INTO `servers` (`server_id`, `server_ip`, `asterisk_version`, `vd_server_logs`, `agi_output`, `carrier_logging_active`)
VALUES ('SRV1', '10.0.0.1', '18.18.1-vici', 'N', 'FILE', 'Y');
INSERT INTO `system_settings` (`highest_lead_id`) VALUES ('200000');
